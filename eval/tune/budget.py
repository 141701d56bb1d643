"""The time a chunk may take, and which plans keep to it.

--budget.ms   the p99 of a whole chunk may be so long; where a candidate executes chunks in a way of its own,
              it must besides be so short that every tick has a fresh action, as below
--budget.hz   control rate that is to be kept: no tick without a fresh action. At n fresh actions a chunk
              that takes d ticks leaves n - d of them, which must last until the next one is there: d
              ticks, asked for as soon as it arrives. So a chunk may take floor(n / 2) periods in modes
              async and rtc, and no more than are left when it is asked for (request_at). In sync mode the
              robot stands while it thinks; there a chunk may take one period.

--budget.device=FILE says how long chunks take on another machine; predictions keep a budget with the largest
error to spare that was found of them there. --budget.memory_mb leaves out what takes more memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.telemetry.histogram import percentile
from vivace.eval.terminal import milliseconds
from vivace.eval.tune.candidate import Candidate
from vivace.policies.errors import BadSetting
from vivace.policies.spec import PolicySpec

_PERCENTS = (99.0, 95.0, 90.0, 50.0)
"""Asked for in this order: the first that there are enough measurements for counts."""


@dataclass(kw_only=True)
class BudgetOptions:
    """What a plan must keep to."""

    ms: float | None = None
    """Longest p99 of a whole chunk [ms]."""
    hz: float | None = None
    """Control rate [Hz] that must be kept: the p99 of a whole chunk is within the time that the loop's mode
    leaves it. The world's, the data's or the policy's own rate when neither is given."""
    device: str = ""
    """Profile of the machine that the plan is for, by which latencies are predicted; measured there by
    vivace bench --bench.profile=FILE. This machine, by the clock, when not given."""
    memory_mb: float | None = None
    """Memory that a plan may take [MB]: its weights, and the most that a chunk holds besides."""

    def __post_init__(self) -> None:
        """One budget, and it is a positive one."""
        if self.ms is not None and self.hz is not None:
            raise BadSetting("budget.ms and budget.hz are both given; a chunk has one budget, give one")
        for name, value in (("ms", self.ms), ("hz", self.hz), ("memory_mb", self.memory_mb)):
            if value is not None and not 0 < value < math.inf:
                raise BadSetting(f"budget.{name}={value}; a number above 0 is needed")


@dataclass(frozen=True)
class Elsewhere:
    """Another machine, which latencies are predicted for."""

    told: str
    """Which, and how well, in words."""
    margin: float
    """Predicted times are lengthened by this share before they are held against the budget."""
    machine: Mapping[str, Any]
    """As of `eval.machine.machine`."""


@dataclass(frozen=True)
class Budget:
    """How long a chunk of a policy may take in a loop."""

    loop: LoopSettings
    """As the user has it; a candidate may execute chunks otherwise."""
    spec: PolicySpec
    seconds: float | None = None
    """The most for all candidates [s]; None: as the rate leaves."""
    control_hz: float | None = None
    """Rate that must be kept [Hz]: by all where nobody says seconds, else by ways to execute chunks that a
    search chooses, for a robot is not to run on stale actions by its choice."""
    elsewhere: Elsewhere | None = None
    """None: latencies are this machine's, measured."""

    def __post_init__(self) -> None:
        """There must be one."""
        if self.seconds is None and self.control_hz is None:
            raise BadSetting(
                "there is no budget, and nobody says at which rate the policy acts; give --budget.ms=… or "
                "--budget.hz=…"
            )

    def of(self, candidate: Candidate) -> float:
        """Longest time of its chunk [s]; 0 where the loop leaves it none."""
        is_own_way = not self.loop.is_sync and bool(candidate.execution.chosen)
        if self.control_hz is None or (self.seconds is not None and not is_own_way):
            assert self.seconds is not None
            return self.seconds
        return min(self.ticks(candidate) / self.control_hz, self.seconds or math.inf)

    def ticks(self, candidate: Candidate) -> int:
        """Control periods that the loop leaves its chunk."""
        if self.loop.is_sync:
            return 1
        loop = self.loop.executing(candidate.execution)
        n = loop.fresh_actions(self.spec)
        return n // 2 if loop.request_at is None else min(n // 2, loop.request_at)

    @property
    def named(self) -> str:
        """The budget as it was given: "20 Hz", "50 ms"."""
        return f"{self.control_hz:g} Hz" if self.seconds is None else f"{1e3 * self.seconds:g} ms"

    @property
    def told(self) -> str:
        """The budget of the policy's own way to execute chunks, in words."""
        own = Candidate()
        ms = f"{milliseconds(self.of(own), 1)} ms"
        if self.seconds is not None:
            return f"{ms} for a whole chunk (p99)"
        if self.loop.is_sync:
            return f"{self.control_hz:g} Hz, mode sync: {ms}, one control period, for a whole chunk (p99)"
        n = self.loop.fresh_actions(self.spec)
        return (
            f"{self.control_hz:g} Hz, mode {self.loop.mode}: {ms} for a whole chunk (p99), the "
            f"{self.ticks(own)} control periods that {n} fresh actions leave"
        )

    def is_kept(self, candidate: Candidate, times_s: Sequence[float]) -> bool:
        """Whether measured latencies [s] are within it, by the highest percentile that they support."""
        margin = self.elsewhere.margin if self.elsewhere else 0.0
        return bool(times_s) and (1 + margin) * tail(times_s)[1] <= self.of(candidate)


def tail(times_s: Sequence[float]) -> tuple[float, float]:
    """Return the highest percentile that measurements support, at most the 99th, and its value [s].

    Args:
        times_s: at least one.
    """
    for percent in _PERCENTS:
        found = percentile(times_s, percent)
        if found is not None:
            return percent, found
    return 100.0, max(times_s)
