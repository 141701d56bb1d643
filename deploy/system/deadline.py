"""Stop in time: an inference that may be cut short asks between two steps whether another one still fits."""

import math
import time
from collections.abc import Callable


class Deadline:
    """When a chunk must be there.

    Args:
        at_s: on the clock `now` [s]; None: whenever.
        now: the clock, monotonic time by default.
    """

    def __init__(self, at_s: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._at_s, self._now = math.inf if at_s is None else at_s, now
        self._last_s = now()
        self._longest_s = 0.0
        self.was_met_early = False
        """The inference was cut short."""

    def is_too_near(self) -> bool:
        """Whether another step, as long as the longest so far, would end too late; called after each step."""
        now = self._now()
        self._longest_s = max(self._longest_s, now - self._last_s)
        self._last_s = now
        self.was_met_early = now + self._longest_s > self._at_s
        return self.was_met_early
