"""Time several ways of doing the same thing, interleaved in one process."""

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    seed: int = 0,
    on_round: Callable[[int], None] = lambda done: None,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time every run `repeats` times, all of them once a round, in a new random order each round.

    A slow spell of the machine then falls on all of them, and ratios of medians stay honest.

    Args:
        runs: name -> what to time.
        repeats: timed rounds.
        warmup: rounds that are not timed.
        seed: of the order.
        on_round: called with the number of rounds done.
        synchronise: waits for the device.

    Returns:
        Name -> wall times [s], in the order of the rounds.
    """
    order = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()
    try:
        for round_index in range(warmup + repeats):
            for name in order.permutation(list(runs)):
                synchronise()
                began = time.perf_counter()
                runs[str(name)]()
                synchronise()
                if round_index >= warmup:
                    times[str(name)].append(time.perf_counter() - began)
            on_round(round_index + 1)
    finally:
        gc.enable()
    return times
