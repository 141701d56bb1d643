"""Random weights: how many there are is known before there is any, and what does not fit is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from vivace.policies.errors import BadSetting

_ROOM = 0.25
"""What a chunk needs besides the weights, as a share of them."""
_LEAST = 1e9
"""And at least [bytes]."""


@contextmanager
def without_weights() -> Iterator[None]:
    """Let modules that are made meanwhile have parameters of a shape and a dtype alone; buffers are whole.

    Unlike `accelerate.init_empty_weights`, a parameter that two modules share stays one.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def check_fits(policy: nn.Module, kind: str, device: torch.device) -> None:
    """Raise `BadSetting` if a policy's weights, and what a chunk needs besides, do not fit a device's memory.

    Args:
        policy: as `without_weights` has it made.
        kind: its type.
        device: where it is to be.
    """
    parameters = list(policy.parameters())
    n = sum(p.numel() for p in parameters)
    size = sum(p.numel() * p.itemsize for p in parameters)
    need, free = size + max(_ROOM * size, _LEAST), _free(device)
    if need <= free:
        return
    halved = "; --policy.dtype=bfloat16 takes about half" if size > 3 * n else ""
    raise BadSetting(
        f"policy {kind!r} has {n / 1e6:.0f} million parameters, {_gb(size)}, and needs about {_gb(need)} "
        f"with what a chunk takes; {device} has {_gb(free)} free{halved}; free some, or take another machine"
    )


def fill(policy: nn.Module, device: torch.device, seed: int) -> None:
    """Give a policy random weights, in place, so that what goes through it stays of one size.

    Matrices are uniform with the variance 1 / inputs; of vectors, weights are ones and biases zeros.

    Args:
        policy: as `without_weights` has it made.
        device: where they are to be; buffers move there too.
        seed: of the numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in policy.modules():
        for name, empty in module._parameters.items():
            if empty is None:
                continue
            if empty not in made:
                made[empty] = _random(name, empty, device, generator)
            module._parameters[name] = made[empty]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _random(name: str, empty: nn.Parameter, device: torch.device, generator: Any) -> nn.Parameter:
    values = torch.empty_like(empty, device=device, requires_grad=False)
    if values.ndim > 1:
        bound = (3 / values[0].numel()) ** 0.5
        values.uniform_(-bound, bound, generator=generator)
    else:
        values.fill_(1.0 if name.endswith("weight") else 0.0)
    return nn.Parameter(values, requires_grad=empty.requires_grad)


def _free(device: torch.device) -> float:
    """Memory that can be had on a device [bytes]."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
