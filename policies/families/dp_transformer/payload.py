"""Checkpoints of the original Diffusion Policy project, `*.ckpt`, opened without running anything in them.

    cfg              OmegaConf, resolved before it was saved
    state_dicts      {"model", "ema_model", "optimizer"}
    pickles          bytes, which are not looked at

The project pickles with dill. torch reads such a file with `weights_only=True` if every class in it is
allowed; those of OmegaConf, and dill's word for a type, are read as inert things that hold what they are
given. A file that names anything else is refused.

Source: real-stanford/diffusion_policy, `workspace/base_workspace.py`; omegaconf `nodes.py`, `dictconfig.py`.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from vivace.policies.errors import PolicyNotFound, in_one_line

_INERT = ("omegaconf.", "dill._dill._load_type", "typing.Any", "collections.defaultdict")


class _Inert:
    """Stands for whatever a pickle wants to make; keeps its state, does nothing."""

    def __new__(cls, *args: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_payload(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and state dicts of a checkpoint.

    Raises:
        PolicyNotFound: it is damaged, another project's, or holds something that would have to be run.
    """
    try:
        named = get_unsafe_globals_in_checkpoint(file)
        foreign = [name for name in named if not name.startswith(_INERT)]
        if foreign:
            raise PolicyNotFound(
                f"{file} holds more than tensors and settings ({foreign[0]}), so it is not unpickled; save "
                "its state_dicts and cfg alone where you trust it"
            )
        with safe_globals([(_Inert, name) for name in named]):
            payload = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise PolicyNotFound(
            f"{file} is truncated or not a checkpoint of Diffusion Policy ({in_one_line(error, 160)})"
        ) from error
    if not isinstance(payload, dict) or not {"cfg", "state_dicts"} <= payload.keys():
        raise PolicyNotFound(f"{file} lacks cfg or state_dicts; it is not a checkpoint of Diffusion Policy")
    settings, states = _plain(payload["cfg"]), payload["state_dicts"]
    if not isinstance(settings, dict) or not isinstance(states, dict):
        raise PolicyNotFound(f"{file} has no settings under cfg, or no state dicts; another format")
    return settings, states


def _plain(node: Any) -> Any:
    """What a node of OmegaConf holds, as plain data."""
    if not isinstance(node, _Inert):
        return node
    if "_content" not in node.state:
        return _plain(node.state.get("_val"))
    content = node.state["_content"]
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list) else content
