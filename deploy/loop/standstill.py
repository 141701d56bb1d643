"""How a robot is held and brought to rest, by kind of action: by the loop, and by whatever ends it."""

from collections.abc import Sequence
from itertools import count

import numpy as np

from vivace.deploy.loop.clock import Clock
from vivace.deploy.loop.guard import ActionGuard
from vivace.deploy.loop.robot import Told
from vivace.policies.spec import ActionKind, PolicySpec


def fallback_action(
    last: np.ndarray, kinds: Sequence[ActionKind], n_ticks: int = 1, ramp_ticks: int = 5
) -> np.ndarray:
    """Return the action of the n-th tick in a row without one: hold, stand still or ramp down.

    Absolute targets hold their last value, displacements are zero, and velocities fall linearly to zero,
    which they reach after `ramp_ticks` ticks.

    Args:
        last: the last action that came from the policy (A,).
        kinds: what each dimension means (A).
        n_ticks: ticks since `last`, from 1.
        ramp_ticks: length of the ramp, at least 1.

    Returns:
        (A,), of the dtype of `last`.
    """
    ramp = max(0.0, 1.0 - n_ticks / ramp_ticks)
    shares = {ActionKind.ABSOLUTE: 1.0, ActionKind.DELTA: 0.0, ActionKind.VELOCITY: ramp}
    return np.asarray(last * np.array([shares[kind] for kind in kinds]), dtype=last.dtype)


def is_standstill(action: np.ndarray, before: np.ndarray, kinds: Sequence[ActionKind]) -> bool:
    """Whether an action (A,) executed after another moves nothing: targets stay, all others are zero.

    After itself: whether a robot that executes it over and over stands still.
    """
    is_absolute = np.array([kind == ActionKind.ABSOLUTE for kind in kinds])
    return bool(np.array_equal(np.where(is_absolute, action - before, action), np.zeros(len(kinds))))


def rest_action(last: np.ndarray, kinds: Sequence[ActionKind]) -> np.ndarray:
    """Where every fallback ends: targets hold, all others are zero (A,)."""
    return fallback_action(last, kinds, 1, 1)


class Standstill:
    """Brings a robot to rest by kind of action: velocities ramp down to zero, targets hold, offsets are zero.

    The ramp keeps to the limits. Its end does not: whatever they allow, the last command is a standstill,
    told again until it reaches the robot.

    Args:
        robot: knows what it was told last.
        spec: of the policy, for what its actions mean.
        clock: keeps the pace.
        period_s: control period [s].
        ramp_ticks: length of the ramp.
        patience_s: how long the limits may stretch the ramp, and how long a robot that does not take the last
            command is told again [s].
    """

    def __init__(
        self,
        robot: Told,
        spec: PolicySpec,
        clock: Clock,
        period_s: float,
        ramp_ticks: int,
        patience_s: float = 2.0,
    ) -> None:
        self._robot, self._spec, self._clock = robot, spec, clock
        self._period_s, self._ramp_ticks, self._patience_s = period_s, ramp_ticks, patience_s

    def command(self, guard: ActionGuard) -> bool:
        """Bring the robot to rest now; one that was told nothing yet is left alone.

        Args:
            guard: has limited what was commanded so far.

        Returns:
            Whether it took the last command.
        """
        if self._robot.last is None:
            return True
        rest = self._ramp(self._robot.last, guard)
        ends_s = self._clock.now() + self._patience_s
        while True:
            self._robot.act(rest)
            if self._robot.has_reached or self._clock.now() >= ends_s:
                return self._robot.has_reached
            self._pause()

    def _ramp(self, begin: np.ndarray, guard: ActionGuard) -> np.ndarray:
        """Slow down as far as the limits, the patience and the robot go along; returns the standstill."""
        kinds, ends_s = self._spec.action_kinds, self._clock.now() + self._patience_s
        rest = rest_action(begin, kinds)
        for n in count(1):
            allowed = guard.limit(fallback_action(begin, kinds, n, self._ramp_ticks))
            if np.array_equal(allowed, rest) or self._clock.now() + self._period_s >= ends_s:
                break
            self._robot.act(allowed)
            if not self._robot.has_reached:
                break
            self._pause()
        return rest

    def _pause(self) -> None:
        self._clock.sleep_until(self._clock.now() + self._period_s)
