"""A policy of lerobot's class with the weights of its checkpoint, every one of them proven to be there."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file
from torch import Tensor

from vivace.policies.checkpoint.find import WEIGHTS
from vivace.policies.checkpoint.former import modern_copy
from vivace.policies.checkpoint.inside import found_inside
from vivace.policies.checkpoint.needs import not_installed, out_of_reach
from vivace.policies.checkpoint.shards import in_one_file, tensor_names
from vivace.policies.errors import BadSetting, PolicyNotFound, in_one_line

_REFUSALS = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
"""What lerobot's classes raise where a policy cannot be built."""


_IS_LOADING: ContextVar[bool] = ContextVar("is_loading", default=False)


def is_loading() -> bool:
    """Whether it is `load_weights` that asks lerobot's class for a policy at this moment."""
    return _IS_LOADING.get()


@contextmanager
def _loading() -> Iterator[None]:
    token = _IS_LOADING.set(True)
    try:
        yield
    finally:
        _IS_LOADING.reset(token)


def load_weights(folder: Path, config: PreTrainedConfig) -> Any:
    """Build the policy that a config describes, with the weights of a folder, on the config's device.

    Raises:
        PolicyNotFound: the weights are damaged, do not fit the config or are not finite, or what the policy
            is built of cannot be had: a package, or an encoder that it names by its place on the Hub.
    """
    names = tensor_names(folder)
    policy_class: Any
    try:
        policy_class = get_policy_class(config.type)
        with (
            redirect_stdout(sys.stderr),
            found_inside(folder, config),
            _loading(),
            _nothing_to_download(config),
            in_one_file(folder) as whole,
            modern_copy(whole, names) as where,
        ):
            policy = policy_class.from_pretrained(where, config=config, strict=True)
            if policy_class.from_pretrained.__func__ is not PreTrainedPolicy.from_pretrained.__func__:
                _check_all_there(where / WEIGHTS, policy)
    except _REFUSALS as error:
        raise PolicyNotFound(f"{folder}: {_why_not(config, error)}") from error
    if policy.config.action_feature is None:
        raise PolicyNotFound(f"{folder / 'config.json'} has no 'action' among its output_features")
    return policy.to(config.device).eval()


def _why_not(config: Any, error: BaseException) -> str:
    """What is said where a policy is not built; what it lacks may be the cause of what its class raised."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ImportError):
            return not_installed(config.type, found)
        if isinstance(found, OSError):  # of the Hub's and of transformers' too
            return out_of_reach(vars(config), found)
        found = found.__cause__ or found.__context__
    return f"{WEIGHTS} does not fit config.json: {in_one_line(error)}"


def check_finite(folder: Path, policy: torch.nn.Module) -> None:
    """Raise `PolicyNotFound` if a weight holds NaN or infinity, or a buffer NaN."""
    for name, weight in policy.named_parameters():
        if not weight.isfinite().all():
            raise PolicyNotFound(
                f"{folder}: weight {name!r} holds NaN or infinity; needed are finite ones; train again, or "
                "copy an earlier checkpoint"
            )
    for name, buffer in policy.named_buffers():
        if buffer.isnan().any():  # infinity is what attention masks are made of
            raise PolicyNotFound(
                f"{folder}: buffer {name!r} holds NaN; train again, or copy an earlier checkpoint"
            )


def check_range(folder: Path, policy: torch.nn.Module, dtype: str) -> None:
    """Raise `BadSetting` if a weight became infinite when the policy was cast to a dtype."""
    for name, weight in policy.named_parameters():
        if not weight.isfinite().all():
            raise BadSetting(
                f"{folder}: weight {name!r} is too large for {dtype}; give --policy.dtype=bfloat16 or float32"
            )


@contextmanager
def _nothing_to_download(config: Any) -> Iterator[None]:
    """Let an encoder be built without the weights that it once began with: the checkpoint holds its own."""
    name = "pretrained_backbone_weights"  # as lerobot's act, diffusion and vqbet call it
    kept = getattr(config, name, None)
    try:
        if kept is not None:
            setattr(config, name, None)
        yield
    finally:
        if kept is not None:
            setattr(config, name, kept)


def _check_all_there(file: Path, policy: torch.nn.Module) -> None:
    """Raise `ValueError` unless every tensor of a policy is one of a file's, by its name or by its values.

    Some of lerobot's classes load in a way of their own, and say on stdout only that it failed. Several names
    may stand for one tensor, which is stored once.
    """
    stored = load_file(file)
    for names, tensor in _tensors(policy.state_dict()):
        named = [
            stored[name] for name in (*names, *(n.removeprefix("model.") for n in names)) if name in stored
        ]
        if not any(_is(found, tensor) for found in named or stored.values()):
            raise ValueError(f"{names[0]!r} was not loaded")


def _tensors(state: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """The tensors of a state dict with all their names."""
    found: dict[Any, tuple[list[str], Tensor]] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else name
        found.setdefault(place, ([], tensor))[0].append(name)
    return list(found.values())


def _is(found: Tensor, tensor: Tensor) -> bool:
    same_shape = found.shape == tensor.shape
    return same_shape and torch.equal(found.to(tensor).nan_to_num(), tensor.nan_to_num())
