"""Checkpoints of earlier lerobots: statistics of normalisation inside of the weights.

    normalize_inputs.buffer_<input>.{mean,std,min,max}
    normalize_targets.buffer_<output>.…     unnormalize_outputs.buffer_<output>.…

`<input>` is a feature's name with "_" for each ".". Since 0.4 they are lerobot's processors' instead. Its own
migration writes every "_" as ".", which breaks names such as `observation.environment_state`; here the
features that config.json lists say what is meant.

Source: lerobot 0.3 `policies/normalize.py`; lerobot 0.6 `processor/migrate_policy_normalization.py`.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vivace.policies.checkpoint.find import WEIGHTS
from vivace.policies.checkpoint.shards import tensor_names, weight_files
from vivace.policies.errors import PolicyNotFound

_BUFFER = re.compile(r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_(\w+)\.(\w+)")
_COMPILED = "_orig_mod."
"""In the names of weights that were saved of a compiled policy."""


def statistics_in_weights(folder: Path, features: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Feature -> statistics that an earlier lerobot kept among the weights; none where it did not.

    Raises:
        PolicyNotFound: there are some of a feature that is not listed, or the weights are damaged.
    """
    if not any(_BUFFER.fullmatch(name) for name in tensor_names(folder)):
        return {}
    buffers = {key.replace(".", "_"): key for key in features}
    found: dict[str, dict[str, Tensor]] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                match = _BUFFER.fullmatch(name)
                if match is None:
                    continue
                buffer, statistic = match.groups()
                if buffer not in buffers:
                    raise PolicyNotFound(
                        f"{file} holds {name!r}, but config.json has no such feature: "
                        f"{', '.join(buffers.values())}"
                    )
                found.setdefault(buffers[buffer], {})[statistic] = tensors.get_tensor(name)
    return found


@contextmanager
def modern_copy(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Give a folder whose weights are named as today's lerobot wants them: the same one, or a copy for now.

    Args:
        folder: with config.json and weights.
        names: of its tensors.
    """
    today = {name: name.replace(_COMPILED, "") for name in names if not _BUFFER.fullmatch(name)}
    if list(today) == list(names) and all(old == new for old, new in today.items()):
        yield folder
        return
    with TemporaryDirectory() as made:
        stored: dict[str, Any] = load_file(folder / WEIGHTS)
        save_file({new: stored[old] for old, new in today.items()}, Path(made) / WEIGHTS)
        yield Path(made)
