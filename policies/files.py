"""Files and folders that are whole or not there; free of torch."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path, ending: str = "") -> Iterator[Path]:
    """Give a path to write a file or a folder to, which then takes the place of `target` at once.

    Nobody sees it half written: until the end `target` stays what it was, and for good if writing fails.

    Args:
        target: file or folder; its parent must be there.
        ending: what the path must end in, for writers that go by it, such as ".mp4".
    """
    partial = target.with_name(f"{target.name}.partial{ending}")
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _remove(target)  # no system replaces a folder that is not empty
        os.replace(partial, target)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
