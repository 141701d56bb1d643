"""When ticks begin: at absolute deadlines, so that lateness neither adds up nor is caught up in a burst."""

from dataclasses import dataclass

from vivace.deploy.loop.clock import Clock

_SLACK_TICKS = 1e-6
"""Rounding of tick times is not lateness."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The beginning of a tick."""

    tick: int
    """Number of the tick; later than asked for if whole periods had passed."""
    time_s: float
    """When it began [s]."""
    late_s: float
    """How long after the deadline of the tick asked for it began [s]: the jitter."""
    skipped: int
    """Deadlines before it that passed without a tick."""

    @property
    def due_s(self) -> float:
        """Deadline of the tick asked for [s]."""
        return self.time_s - self.late_s


class Pace:
    """Tick k begins at `began + k * period`, whatever the ticks before it took.

    A tick that comes a whole period late or more takes the number of the period it is in, and the deadlines
    in between are skipped: actions keep their times, and no burst of ticks catches up. A clock that goes back
    by more than a period, as a simulation's may, moves the beginning, so that the loop does not sleep
    through the difference.

    Args:
        clock: the beginning is now.
        period_s: control period [s].
    """

    def __init__(self, clock: Clock, period_s: float) -> None:
        self._clock, self._period_s = clock, period_s
        self._began_s = clock.now()
        self.skipped = 0
        """Deadlines that passed without a tick so far."""
        self.turned_back = 0
        """Times the clock went back so far."""

    def wait(self, tick: int) -> Beat:
        """Return when it is time for `tick`, the next one at least."""
        due = self._began_s + tick * self._period_s
        ahead = due - self._clock.now()
        if ahead > 1.5 * self._period_s:  # after the tick before, at most one period is left
            self._began_s -= ahead
            due -= ahead
            self.turned_back += 1
        self._clock.sleep_until(due)
        now = self._clock.now()
        skipped = max(0, int((now - due) / self._period_s + _SLACK_TICKS))
        self.skipped += skipped
        return Beat(tick + skipped, now, max(0.0, now - due), skipped)
