"""Where a policy computes, and in what: asked by whatever makes a tensor in the path of a chunk."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from vivace.policies.errors import BadSetting

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name -> dtype a policy can be loaded in."""


@dataclass(frozen=True)
class Placement:
    """Device and dtype of a policy's weights."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, policy: Any) -> Self:
        """Read those of a policy's first floating parameter; the CPU's float32 without one."""
        parameters = policy.parameters() if hasattr(policy, "parameters") else ()
        first = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
        return cls(first.device, first.dtype)

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} on {self.device}"

    @property
    def wide(self) -> torch.dtype:
        """What x, its noise and the actions are held in: float32 at least."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def like(self) -> Tensor:
        """An empty tensor that noise is drawn like."""
        return torch.empty(0, dtype=self.wide, device=self.device)

    def move(self, tensor: Tensor) -> Tensor:
        """Send a tensor from the host to the device; to CUDA through pinned memory, so that nobody waits."""
        if self.device.type != "cuda" or tensor.is_cuda:
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def synchroniser(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done what it was told; nothing on a CPU, which is never behind."""
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype as it is typed and written down, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def most_weights(parameters: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype that most numbers of a policy's weights are in; float32 without any."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in parameters:
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)


def read_device(name: str) -> torch.device:
    """Return the device of a name such as "cuda:1"; raises `BadSetting` if this machine lacks it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise BadSetting(
            f"device {name!r} cannot be used on this machine ({reason}), which has {here}"
        ) from error
    return device


def read_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name; raises `BadSetting` naming those there are."""
    if name not in DTYPES:
        raise BadSetting(f"policy.dtype={name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]
