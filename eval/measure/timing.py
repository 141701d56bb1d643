"""Time several ways of doing the same thing, interleaved in one process."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from vivace.policies.errors import BadSetting, named


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often runs are timed."""

    repeats: int
    """Rounds in which all of them are."""
    more: Mapping[str, int] = field(default_factory=dict)
    """Name -> rounds in all, of those that need more: a p99 takes a hundred."""
    limit_s: float = 0.0
    """A run that has been timed for so long [s] is done with the rounds of all: slow ones end early."""
    warmup: int = 1
    """Rounds before, that are not timed."""
    goes_on: bool = False
    """A run that raises is left out, and the others go on; else what it raised ends them all."""

    def __post_init__(self) -> None:
        """Something must be timed."""
        if self.repeats < 1:
            raise BadSetting(f"bench.repeats={self.repeats}; at least 1 timed round is needed")

    @property
    def most(self) -> int:
        """Rounds in which any run is timed, if the limit allows."""
        return max(self.repeats, *self.more.values()) if self.more else self.repeats

    @contextmanager
    def sparing(self, name: str, raised: dict[str, str]) -> Iterator[None]:
        """Note what a run raises, if the others are to go on without it; returns a context.

        Args:
            name: of the run.
            raised: name -> what one raised; is added to.
        """
        try:
            yield
        except Exception as error:
            if not self.goes_on:
                raise
            raised[name] = named(error)

    def are_over(self, name: str, times_s: list[float]) -> bool:
        """Whether a run has been timed often enough."""
        if len(times_s) < self.repeats:
            return False
        return len(times_s) >= self.more.get(name, 0) or sum(times_s) >= self.limit_s


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: Rounds,
    seed: int = 0,
    on_round: Callable[[int], None] = lambda done: None,
    synchronise: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.perf_counter,
    raised: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Time every run again and again, all of them once a round, in a new random order each round.

    A slow spell of the machine then falls on all of them, and ratios of medians of the rounds that two runs
    share (`shared`) stay honest.

    Args:
        runs: name -> what to time.
        rounds: how often.
        seed: of the order.
        on_round: called with the number of rounds done.
        synchronise: waits for the device.
        now: clock [s].
        raised: name -> what a run raised, where the others go on without it; is added to.

    Returns:
        Name -> wall times [s], in the order of the rounds, from the first on; of all that did not raise.
    """
    order = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    left, done = list(runs), 0
    raised = {} if raised is None else raised
    gc.collect()
    gc.disable()
    try:
        while left:
            for name in map(str, order.permutation(left)):
                with rounds.sparing(name, raised):
                    synchronise()
                    began = now()
                    runs[name]()
                    synchronise()
                    if done >= rounds.warmup:
                        times[name].append(now() - began)
            done += 1
            on_round(done)
            times = {name: found for name, found in times.items() if name not in raised}
            left = [name for name in left if name in times and not rounds.are_over(name, times[name])]
    finally:
        gc.enable()
    return times


def shared(first_s: list[float], second_s: list[float]) -> tuple[list[float], list[float]]:
    """Times of two runs in the rounds in which both were timed."""
    n = min(len(first_s), len(second_s))
    return first_s[:n], second_s[:n]
