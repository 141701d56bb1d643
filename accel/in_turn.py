"""Time several ways to the same result, where calibration keeps the fastest on this device."""

import time
from collections.abc import Callable

import torch

from vivace.policies.placement import synchroniser

_ENOUGH_MS = 1000.0
"""What takes so long needs no rounds to be told apart from what else a machine does."""


@torch.inference_mode()
def least_ms(device: torch.device, repeats: int, *ways: Callable[[], object]) -> tuple[float, ...]:
    """Least time of each way [ms], taken in turn: what else runs only makes them slower.

    Args:
        device: whose work is waited for.
        repeats: rounds that count, after one that does not; of what takes a second the first one is all.
        ways: what is timed.
    """
    synchronise = synchroniser(device)
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, found in zip(ways, times, strict=True):
            synchronise()
            began = time.perf_counter()
            way()
            synchronise()
            found.append(1e3 * (time.perf_counter() - began))
        if max(found[-1] for found in times) >= _ENOUGH_MS:
            break
    return tuple(min(found[1:] or found) for found in times)
