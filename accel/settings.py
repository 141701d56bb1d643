"""What settings of a technique, read from a file, must be."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vivace.policies.errors import PlanMismatch


def is_ascending(numbers: Sequence[int]) -> bool:
    """Whether each number is above the one before it."""
    return all(a < b for a, b in zip(numbers, numbers[1:], strict=False))


def check_tensors(
    kind: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]],
) -> None:
    """Raise `PlanMismatch` unless a technique's tensors are the needed ones, and finite.

    Args:
        kind: of the technique.
        tensors: name -> tensor.
        needed: name -> dtype and shape; None where any size above 0 will do.
    """
    if tensors.keys() != needed.keys():
        raise PlanMismatch(
            f"{kind} has tensors {sorted(tensors)}, needed are {sorted(needed)}; copy "
            "acceleration.safetensors beside the plan, or recalibrate: vivace calibrate --policy.path=…"
        )
    for name, (dtype, shape) in needed.items():
        found = tensors[name]
        sizes = zip(found.shape, shape, strict=False)
        fits = len(found.shape) == len(shape) and all(n > 0 if m is None else n == m for n, m in sizes)
        if found.dtype != dtype or not fits or not found.isfinite().all():
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise PlanMismatch(
                f"{kind} has a tensor {name!r} of {found.dtype} {tuple(found.shape)}; this policy needs "
                f"finite {dtype} ({wanted}); recalibrate: vivace calibrate --policy.path=…"
            )
