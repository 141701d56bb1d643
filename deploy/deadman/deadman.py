"""A dead man's switch: says what a robot is told when its control loop has fallen silent.

It is told the time and every tick, and commands nothing itself: `robot_server` runs it in the process that
holds the robot, out of reach of whatever stops the loop.

    a tick            the robot does what the loop says; from now on the switch watches
    limit_s no tick   the robot is brought to rest by kind of action, inside its limits, one command a control
                      period, again and again
    a tick            the loop has the robot back
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.standstill import fallback_action, is_standstill
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind

RAMP_TICKS = 5
"""Commands in which velocities reach zero, as in the loop's own fallback."""


@dataclass(frozen=True, kw_only=True)
class DeadmanSettings:
    """A process that holds the robot, and brings it to rest when the control loop falls silent.

    It outlives the loop's end by kill -9, its being stopped, its terminal, and a robot that does not answer.
    """

    enabled: bool | None = None
    """Whether there is one; when not given: for every robot but our own simulation."""
    periods: float = 5.0
    """The robot is brought to rest after so many control periods without a tick, 2 or more."""
    floor_s: float = 0.1
    """But not before this long [s]: an operating system may keep a healthy loop waiting."""
    stall_s: float = 2.0
    """A robot that takes no action for so long though the loop ticks is connected anew, if its actions are
    velocities [s]."""

    def __post_init__(self) -> None:
        """Times must be finite, and a late tick is not a missing one."""
        if not 2 <= self.periods < float("inf"):
            raise BadSetting(
                f"deadman: periods={self.periods}; 2 or more are needed, else late ticks fire it"
            )
        if not 0 <= self.floor_s < float("inf") or not 0 < self.stall_s < float("inf"):
            raise BadSetting(
                f"deadman: floor_s={self.floor_s}, stall_s={self.stall_s}; finite seconds are needed, "
                "stall_s above 0"
            )

    def limit_s(self, period_s: float) -> float:
        """Longest time between two ticks of a loop that lives [s]."""
        return max(self.periods * period_s, self.floor_s)


class Deadman:
    """The switch of one robot.

    Args:
        limit_s: longest time between two ticks [s].
        period_s: control period [s], at which the standstill is commanded.
        kinds: what each dimension of an action means (A).
        limits: what the commands of the standstill keep to, as the loop's do.
    """

    def __init__(
        self, limit_s: float, period_s: float, kinds: Sequence[ActionKind], limits: Limits | None = None
    ) -> None:
        self._limit_s, self._period_s, self._kinds = limit_s, period_s, tuple(kinds)
        self._guard = ActionGuard(limits, self._kinds, period_s)
        self._told: np.ndarray | None = None
        self._sent: np.ndarray | None = None
        self._due_s: float | None = None
        self._passes = 0
        self.fired = 0
        """How often a robot that was moving had to be brought to rest."""

    @property
    def is_armed(self) -> bool:
        """Whether ticks are expected."""
        return self._due_s is not None

    @property
    def is_at_rest(self) -> bool:
        """Whether what was sent last is a standstill, or nothing was sent."""
        return self._sent is None or is_standstill(self._sent, self._sent, self._kinds)

    def is_late(self, time_s: float, now: float) -> bool:
        """Whether an action of `time_s` comes too late to be executed [s]."""
        return now - time_s > self._limit_s

    def tick(self, action: np.ndarray, time_s: float) -> None:
        """Take an action (A,) of the loop, told at `time_s` [s]."""
        self._told = self._sent = self._guard.limit(action)
        self._due_s, self._passes = time_s + self._limit_s, 0

    def disarm(self) -> None:
        """Expect no ticks until the next one."""
        self._due_s = None

    def fire(self, now: float) -> None:
        """Bring the robot to rest from now on, whatever the loop does until its next tick."""
        self._due_s = now

    def wait_s(self, now: float) -> float | None:
        """How long there is nothing to do [s]; None: until a tick comes."""
        return None if self._due_s is None else max(0.0, self._due_s - now)

    def command(self, now: float) -> np.ndarray | None:
        """Return what the robot is to be told now (A,): the next step to the standstill; None if nothing."""
        if self._due_s is None or self._told is None or now < self._due_s:
            return None
        if self._passes == 0 and not self.is_at_rest:
            self.fired += 1
        self._passes += 1
        self._due_s += self._period_s
        if self._due_s <= now:
            self._due_s = now + self._period_s  # late ones are not caught up
        self._sent = self._guard.limit(fallback_action(self._told, self._kinds, self._passes, RAMP_TICKS))
        return self._sent
