"""The time a chunk may take: its deadline, what latency to expect, and which plan fits."""

import math
from collections import deque
from dataclasses import dataclass

from vivace.policies.errors import BadSetting

_SLACK_TICKS = 1e-6
"""Rounding of tick times is not lateness."""


@dataclass(frozen=True)
class Rung:
    """One plan of a policy and how long its chunks take."""

    name: str
    p99_s: float

    def __post_init__(self) -> None:
        """The latency must be a positive time."""
        if not 0 < self.p99_s < math.inf:
            raise BadSetting(f"plan {self.name!r} has p99_s={self.p99_s}; seconds above 0 are needed")


class LatencyBudget:
    """Control rate, deadlines and a ladder of plans.

    A chunk is *due* at the first tick that would execute no fresh action without it; its deadline is the
    beginning of that tick, `due_tick * period_s`. Asked for at tick k,

        due_tick = k + fresh actions left in the queue at k

    where an action is fresh while its observation is less than `n_action_steps` ticks old. A deadline is
    *missed*, once a chunk, if the chunk is not there when its tick acts: that tick then executes a stale
    action or the fallback. The first chunk of an episode is due at tick 0, and so is every chunk of sync
    mode at the tick it is asked for, because nothing fresh is left by then: there any latency is a miss.

    Args:
        control_hz: control rate [Hz].
        ladder: plans, best first; empty if there is but one.
        window: how many of the last chunks the expected latency looks back on; no running maximum, one slow
            chunk is forgotten.
    """

    def __init__(self, control_hz: float, ladder: tuple[Rung, ...] = (), *, window: int = 8) -> None:
        if not 0 < control_hz < math.inf:
            raise BadSetting(f"control_hz={control_hz}; a rate above 0 Hz is needed")
        if window < 1:
            raise BadSetting(f"window={window}; at least 1 chunk is needed")
        self.control_hz, self.ladder = control_hz, ladder
        self.period_s = 1.0 / control_hz
        """Control period [s]."""
        self.misses = 0
        """Deadlines missed so far."""
        self._recent: deque[float] = deque(maxlen=window)
        self._due_tick: int | None = None

    @property
    def expected_ticks(self) -> int:
        """Ticks the next chunk will take: as the slowest of the last `window`, 0 before the first."""
        return math.ceil(max(self._recent) / self.period_s - _SLACK_TICKS) if self._recent else 0

    def choose(self, time_left_s: float) -> str | None:
        """Return the best plan whose p99 fits, the fastest if none does, None without a ladder."""
        for rung in self.ladder:
            if rung.p99_s <= time_left_s:
                return rung.name
        return min(self.ladder, key=lambda rung: rung.p99_s).name if self.ladder else None

    def ask(self, due_tick: int) -> None:
        """Note that a chunk is asked for, and when it is due."""
        self._due_tick = due_tick

    def wait(self, tick: int) -> None:
        """Note that `tick` acts and the chunk asked for is not there; counts its miss once."""
        if self._due_tick is not None and tick >= self._due_tick:
            self.misses += 1
            self._due_tick = None

    def arrive(self, latency_s: float) -> None:
        """Note that the chunk is there, `latency_s` after it was asked for."""
        self._due_tick = None
        self._recent.append(latency_s)
