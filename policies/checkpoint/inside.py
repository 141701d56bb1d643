"""Folders that travel inside a checkpoint: what config.json or a processor calls `./vlm` lies beside it.

lerobot's policies name a vision-language model or a tokenizer by a place on the Hub or a path, which a
checkpoint that is moved would lose. The name stays as it is written, so that nothing depends on where the
checkpoint lies; the path stands in for it only while something is built of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vivace.policies.errors import PolicyNotFound

HERE = "./"
"""How such a name begins."""


def paths(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> path, of those settings that name a folder of the checkpoint: they end with name or path.

    Others may look so and be none of it, such as where a training run was to be written.

    Raises:
        PolicyNotFound: it is not there, or not inside.
    """
    found = {}
    for setting, name in settings.items():
        if isinstance(name, str) and name.startswith(HERE) and setting.endswith(("name", "path")):
            place = (folder / name).resolve()
            if not place.is_dir() or not place.is_relative_to(folder.resolve()):
                raise PolicyNotFound(
                    f"{folder}: {setting}={name} is no folder of this checkpoint; copy it whole, its "
                    "folders too"
                )
            found[setting] = str(place)
    return found


@contextmanager
def found_inside(folder: Path, settings: Any) -> Iterator[None]:
    """Let an object's attributes that name folders of the checkpoint be paths meanwhile."""
    names = paths(folder, vars(settings))
    kept = {setting: getattr(settings, setting) for setting in names}
    vars(settings).update(names)
    try:
        yield
    finally:
        vars(settings).update(kept)
