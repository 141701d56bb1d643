"""Time as the control loop sees it: the wall's, or a simulation's."""

import time
from typing import Protocol

from vivace.policies.errors import BadSetting


class Clock(Protocol):
    """Seconds since some beginning."""

    def now(self) -> float:
        """Return the time [s]."""

    def sleep_until(self, when: float) -> None:
        """Return at `when` [s], at once if it has passed."""


class WallClock:
    """Monotonic wall time; deadlines are absolute, so a late tick does not shift the next one.

    Args:
        spin_s: the last part of every wait, in which the clock is read over and over instead of sleeping [s]:
            it keeps one core busy for that long, and wakes to the microsecond. 0 sleeps to the end.
    """

    def __init__(self, spin_s: float = 0.0) -> None:
        if not 0 <= spin_s < float("inf"):
            raise BadSetting(f"spin_s={spin_s}; seconds, 0 or more, are needed")
        self._spin_s = spin_s

    def now(self) -> float:
        """Return monotonic time [s]."""
        return time.monotonic()

    def sleep_until(self, when: float) -> None:
        """Sleep, then spin, until the monotonic clock reads `when` [s]."""
        left = when - time.monotonic() - self._spin_s
        if left > 0:
            time.sleep(left)
        if self._spin_s:
            while time.monotonic() < when:
                pass


class VirtualClock:
    """Simulated time: moves when told to, never sleeps, never goes back."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Return simulated time [s]."""
        return self._now

    def sleep_until(self, when: float) -> None:
        """Move on to `when` [s] at once.

        Raises:
            BadSetting: `when` is not a finite time.
        """
        if not abs(when) < float("inf"):
            raise BadSetting(f"virtual clock was asked to sleep until {when}; a finite time is needed")
        self._now = max(self._now, when)
