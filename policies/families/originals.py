"""Convert checkpoints of the original projects to lerobot checkpoint folders, once.

Which project a folder is of is read from its files; see the `original` of each family.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vivace.policies.errors import BadSetting, PolicyNotFound


@dataclass(frozen=True)
class Original:
    """What a checkpoint of an original project holds."""

    config: Any
    """Of our policy."""
    weights: dict[str, Tensor]
    """Under the names of our policy."""
    statistics: dict[str, dict[str, Any]]
    """Feature -> statistics, those that normalise it."""


def action_statistics(found: Mapping[str, Any], file: Path, unnorm_key: str | None) -> dict[str, np.ndarray]:
    """Return "q01" and "q99" of the actions; dimensions that are not normalised get -1 and 1.

    Args:
        found: dataset -> statistics.
        file: where they are from, for messages.
        unnorm_key: name of the dataset; may be None if there is only one.

    Raises:
        PolicyNotFound: a statistic is missing.
        BadSetting: the dataset is unknown, or not named though there are several.
    """
    if unnorm_key is None and len(found) == 1:
        unnorm_key = next(iter(found))
    if unnorm_key is None or unnorm_key not in found:
        said = (
            f"unnorm_key {unnorm_key!r} is not there" if unnorm_key else "several datasets: give unnorm_key"
        )
        raise BadSetting(f"{file}: {said}; datasets: {', '.join(sorted(found))}")
    action = found[unnorm_key].get("action", {})
    lacking = [name for name in ("q01", "q99") if name not in action]
    if lacking:
        raise PolicyNotFound(f"{file}: {unnorm_key!r} lacks action.{lacking[0]}; it has {sorted(action)}")
    low, high = (np.asarray(action[name], np.float32) for name in ("q01", "q99"))
    mask = np.asarray(action.get("mask", np.ones(len(low))), bool)
    return {"q01": np.where(mask, low, -1.0), "q99": np.where(mask, high, 1.0)}


_STATES = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.pt", "rng_state*", "trainer_state.json")
"""What trainers keep beside weights."""


def check_read(run: Path, read: Collection[str]) -> None:
    """Raise `PolicyNotFound` if a folder holds weights that are not read: it is another policy then.

    Args:
        run: the folder.
        read: names of the files that are, relative to it.
    """
    kinds = ("*.pt", "*.pth", "*.bin", "*.ckpt", "*.safetensors", "*.npz", "*.msgpack")
    found = sorted({file for kind in kinds for file in run.rglob(kind)})
    unread = [
        str(file.relative_to(run))
        for file in found
        if str(file.relative_to(run)) not in read and not any(file.match(name) for name in _STATES)
    ]
    if unread:
        raise PolicyNotFound(
            f"{run} holds weights that are not read: {', '.join(unread[:4])}; without them it would be "
            "another policy (OpenVLA-OFT's heads and projectors, FiLM and LoRA are not supported); move "
            "them away if they do not belong to it"
        )


def rename(weights: Mapping[str, Tensor], prefixes: Mapping[str, str | None], part: str) -> dict[str, Tensor]:
    """Rename tensors by the longest prefix each begins with.

    Args:
        weights: tensors under the original's names.
        prefixes: the original's prefix -> ours; None: not used for acting, left out.
        part: what they are, for messages.

    Raises:
        PolicyNotFound: a name begins with none of them.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        known = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if known is None:
            raise PolicyNotFound(
                f"{part} holds {name!r}; its names begin with {', '.join(prefixes)}: another format"
            )
        ours = prefixes[known]
        if ours is not None and not name.endswith("rotary_emb.inv_freq"):
            renamed[ours + name.removeprefix(known)] = tensor
    return renamed


def read_json(file: Path) -> dict[str, Any]:
    """Read an object; raises `PolicyNotFound`."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise PolicyNotFound(f"no {file}; the original project's folder has one") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PolicyNotFound(f"{file} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise PolicyNotFound(f"{file} holds a {type(found).__name__}; an object is needed")
    return found
