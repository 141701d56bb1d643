"""The time a chunk may take: its deadline, what latency to expect, and which plan fits."""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from vivace.policies.errors import BadSetting

_SLACK_TICKS = 1e-6
"""Rounding of tick times is not lateness."""


@dataclass(frozen=True)
class Rung:
    """One plan of a policy and how long its chunks take."""

    name: str
    p99_s: float
    from_load: float | None = None
    """Taken when chunks take so many times as long as measured beforehand, or longer: the load from which on
    it was found to do better than those before it. None: taken when those before it would be late."""

    def __post_init__(self) -> None:
        """The latency must be a positive time, the load a number above 1."""
        if not 0 < self.p99_s < math.inf:
            raise BadSetting(f"plan {self.name!r} has p99_s={self.p99_s}; seconds above 0 are needed")
        if self.from_load is not None and not 1 < self.from_load < math.inf:
            raise BadSetting(
                f"plan {self.name!r} is taken from load {self.from_load:g} on; above 1 is needed"
            )


def read_rung(text: str) -> tuple[str, float | None]:
    """Split "plan@1.7" into the plan and the load from which on it is taken; None where none is said."""
    name, at, load = text.rpartition("@")
    try:
        return (name, float(load)) if at else (text, None)
    except ValueError:  # a folder may have an @ in its name
        return text, None


def read_ladder(texts: Sequence[str]) -> dict[str, float | None]:
    """Plan -> load from which on it is taken, of plans told as `read_rung` reads them, best first.

    Raises:
        BadSetting: a plan is there twice.
    """
    found = [read_rung(text) for text in texts]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise BadSetting(f"the ladder has plans {names}; each may be there once")
    return dict(found)


class LatencyBudget:
    """Control rate, deadlines and a ladder of plans.

    A chunk is *due* at the first tick that would execute no fresh action without it; its deadline is the
    beginning of that tick, `due_tick * period_s`. Asked for at tick k,

        due_tick = k + fresh actions left in the queue at k

    where an action is fresh while its observation is less than `n_action_steps` ticks old. A deadline is
    *missed*, once a chunk, if the chunk is not there when its tick acts: that tick then executes a stale
    action or the fallback. The first chunk of an episode is due at tick 0: there any latency is a miss. In
    sync mode the robot stands still and waits for every chunk, so none has a deadline.

    A plan is chosen before it runs, by the latency predicted for it: its p99 as measured, times how much
    longer than their own p99 the last chunks took, at least 1. A plan fits if that is within the time left.
    On a ladder whose plans say from which load on they do better than those before, it fits until that load
    is reached: a plan that is now and then late may do better than one that never is. A plan that no longer
    fits is left at once; a better one is taken only after it has fitted `patience` times in a row, so that a
    burst of load does not make the loop swing between two plans.

    Args:
        control_hz: control rate [Hz].
        ladder: plans, best first as each does alone while the world moves, which more steps need not be;
            empty if there is but one.
        window: how many of the last chunks the expected latency looks back on; no running maximum, one slow
            chunk is forgotten.
        patience: how many times in a row a better plan must fit before it is taken.
    """

    def __init__(
        self, control_hz: float, ladder: tuple[Rung, ...] = (), *, window: int = 8, patience: int = 3
    ) -> None:
        if not 0 < control_hz < math.inf:
            raise BadSetting(f"control_hz={control_hz}; a rate above 0 Hz is needed")
        if window < 1 or patience < 1:
            raise BadSetting(f"window={window}, patience={patience}; at least 1 chunk each is needed")
        names = [rung.name for rung in ladder]
        if len(set(names)) < len(names):
            raise BadSetting(f"the ladder has plans {names}; each may be there once")
        loads = [rung.from_load for rung in ladder[1:]]
        self._is_by_load = bool(loads) and None not in loads
        if any(rung.from_load is not None for rung in ladder) and (
            not self._is_by_load
            or ladder[0].from_load is not None
            or loads != sorted({load for load in loads if load is not None})
        ):
            raise BadSetting(
                f"the ladder's plans are taken from loads {[rung.from_load for rung in ladder]} on; needed: "
                "none for the first, and a larger one for each after it, or none at all"
            )
        self.control_hz, self.ladder = control_hz, ladder
        self.period_s = 1.0 / control_hz
        """Control period [s]."""
        self.misses = 0
        """Deadlines missed so far."""
        self.was_late = False
        """Whether the chunk that arrived last missed its deadline."""
        self._recent: deque[float] = deque(maxlen=window)
        self._loads: deque[float] = deque(maxlen=window)
        """How much longer than their plan's p99 the last chunks took."""
        self.choices: Counter[str] = Counter()
        """How often each plan was chosen."""
        self._patience, self._fitted = patience, 0
        self._chosen: int | None = None
        self._due_tick: int | None = None
        self._has_missed = False

    @property
    def expected_ticks(self) -> int:
        """Ticks the next chunk will take: as the slowest of the last `window`, 0 before the first."""
        return math.ceil(max(self._recent) / self.period_s - _SLACK_TICKS) if self._recent else 0

    @property
    def lead_ticks(self) -> int:
        """Fresh actions that must be left when the next chunk is asked for.

        With a ladder that is chosen from by the time left, as many as its best plan takes: a loop that asks
        when the present plan would just be in time never has the time for a better one.
        """
        if not self.ladder or self._is_by_load:
            return self.expected_ticks
        return math.ceil(self.ladder[0].p99_s / self.period_s - _SLACK_TICKS)

    @property
    def load(self) -> float:
        """How much longer than measured beforehand a chunk takes at present, at least 1."""
        return max(1.0, *self._loads) if self._loads else 1.0

    def choose(self, time_left_s: float) -> str | None:
        """Return the plan to run: the best that fits, the fastest if none does, None without a ladder."""
        if not self.ladder:
            return None
        fitting = [i for i in range(len(self.ladder)) if self._fits(i, time_left_s)]
        fastest = min(range(len(self.ladder)), key=lambda i: self.ladder[i].p99_s)
        best = fitting[0] if fitting else fastest
        if self._chosen is None or best >= self._chosen or self._chosen not in fitting:
            self._chosen, self._fitted = best, 0
        else:
            self._fitted += 1
            if self._fitted >= self._patience:
                self._chosen, self._fitted = best, 0
        name = self.ladder[self._chosen].name
        self.choices[name] += 1
        return name

    def _fits(self, i: int, time_left_s: float) -> bool:
        """Whether a plan of the ladder may be taken now."""
        if self._is_by_load:
            after = [rung.from_load for rung in self.ladder[i + 1 : i + 2]]
            return all(load is not None and self.load < load for load in after)
        return self.ladder[i].p99_s * self.load <= time_left_s + _SLACK_TICKS * self.period_s

    def ask(self, due_tick: int) -> None:
        """Note that a chunk is asked for, and when it is due."""
        self._due_tick, self._has_missed = due_tick, False

    def wait(self, tick: int) -> None:
        """Note that `tick` acts and the chunk asked for is not there; counts its miss once."""
        if self._due_tick is not None and tick >= self._due_tick:
            self.misses += 1
            self._due_tick, self._has_missed = None, True

    def arrive(self, latency_s: float) -> None:
        """Note that the chunk is there, `latency_s` after it was asked for."""
        self._due_tick, self.was_late = None, self._has_missed
        self._recent.append(latency_s)
        if self._chosen is not None:
            self._loads.append(latency_s / self.ladder[self._chosen].p99_s)
