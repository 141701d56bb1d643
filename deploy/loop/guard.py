"""Limits every action passes before it reaches the robot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind

RAMP_TICKS = 5
"""Ticks in which a target that a chunk does not move is reached from a standstill."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits in the robot's units, one number a dimension; one that is not given does not apply."""

    low: tuple[float, ...] | None = None
    """Smallest values."""
    high: tuple[float, ...] | None = None
    """Largest values."""
    max_step: tuple[float, ...] | None = None
    """Largest changes between two ticks."""
    max_velocity: tuple[float, ...] | None = None
    """Largest speeds of what is commanded [units/s], whatever its kind."""
    max_acceleration: tuple[float, ...] | None = None
    """Largest changes of speed [units/s²]."""

    def __post_init__(self) -> None:
        """Limits must agree in length, be ordered, and steps and rates positive."""
        given = self._given()
        if len({len(values) for values in given.values()}) > 1:
            raise BadSetting(f"limits have different lengths: {given}; give one number per action dimension")
        if any(np.isnan(values).any() for values in given.values()):
            raise BadSetting(f"limits hold NaN: {given}; leave out a limit that does not apply")
        if self.low is not None and self.high is not None and np.any(np.greater(self.low, self.high)):
            raise BadSetting(f"limits have low {self.low} above high {self.high}; swap them")
        for name in ("max_step", "max_velocity", "max_acceleration"):
            if name in given and np.any(np.less_equal(given[name], 0)):
                raise BadSetting(f"{name} {given[name]} must be above 0 in every dimension")

    def _given(self) -> dict[str, tuple[float, ...]]:
        return {name: values for name, values in vars(self).items() if values is not None}

    @property
    def action_dim(self) -> int | None:
        """Action size the limits are for, None if there are none."""
        return next((len(values) for values in self._given().values()), None)

    @property
    def has_rates(self) -> bool:
        """Whether a speed or an acceleration is limited."""
        return self.max_velocity is not None or self.max_acceleration is not None


class ActionGuard:
    """Keeps actions finite, inside bounds, steps, speeds and accelerations; counts every intervention.

    Where limits contradict each other the later one holds of: acceleration, velocity, bounds, step.
    A robot at its bound stops there, however suddenly. One that stands outside its bounds may stay there or
    come back, step by step, and goes no further out.

    Args:
        limits: what is allowed.
        kinds: what each dimension means, needed to limit speeds: an absolute target moves by its change, a
            displacement by itself, a velocity by itself times the control period.
        period_s: control period [s], needed likewise.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        kinds: Sequence[ActionKind] = (),
        period_s: float | None = None,
    ) -> None:
        self.limits = limits or Limits()
        if self.limits.has_rates and (period_s is None or len(kinds) != self.limits.action_dim):
            raise BadSetting(
                f"limits of speed and acceleration need the control period and the kind of each of "
                f"{self.limits.action_dim} dimensions; given were {period_s} and {len(kinds)} kinds"
            )
        self._action_dim = self.limits.action_dim or len(kinds) or None
        self._is_absolute = np.array([kind == ActionKind.ABSOLUTE for kind in kinds], bool)
        self._scale = np.array([period_s if kind == ActionKind.VELOCITY else 1.0 for kind in kinds])
        self._period_s = period_s or 0.0
        self._low, self._high = _or(self.limits.low, -np.inf), _or(self.limits.high, np.inf)
        self._step = _or(self.limits.max_step, np.inf)
        if self.limits.max_velocity is not None:  # what a target may move by, outside the bounds too
            speed = _or(self.limits.max_velocity, np.inf) * self._period_s
            self._step = np.where(self._is_absolute, np.minimum(self._step, speed), self._step)
        self._last: np.ndarray | None = None
        self._moved: np.ndarray | None = None
        """What the last action moved each dimension by, in one period."""
        self._ramp = np.array(np.inf)
        """Largest step towards each target that was not reached since a standstill; else infinite."""
        self.interventions = 0
        """Actions refused or changed so far."""

    def start(self, posture: np.ndarray) -> None:
        """Note what the robot holds (A,), inside the limits or not: the first step is measured from there.

        Raises:
            BadSetting: it is further outside its bounds than they are apart. No robot is; one of the two is
                in other units.
        """
        self._check(posture)
        span = self._high - self._low
        outside = np.maximum(self._low - posture, posture - self._high)
        far = np.flatnonzero((outside > span) & (span > 0))
        if far.size:
            i = int(far[0])
            low, high = (float(np.broadcast_to(bound, posture.shape)[i]) for bound in (self._low, self._high))
            raise BadSetting(
                f"the robot holds {posture[i]:g} in dimension {i} of its actions, far outside its limits, "
                f"{low:g} to {high:g}; bring it there, or give it limits in its own units"
            )
        self._last, self._moved, self._ramp = posture, np.zeros(posture.shape), np.array(np.inf)

    def ramp(self, actions: np.ndarray) -> None:
        """Be about to execute a chunk's actions (n, A) from a standstill, in a posture that is known.

        Until it has reached an absolute target, each tick brings the robot nearer by no more than the limits
        say or, where they say nothing, by the largest step inside the chunk. A dimension that does not move
        inside the chunk is brought there evenly, in `RAMP_TICKS`.
        """
        if self._last is None or not self._is_absolute.any() or not np.isfinite(actions[0]).all():
            return
        with np.errstate(invalid="ignore", over="ignore"):
            steps = np.abs(np.diff(actions, axis=0))  # not finite: `check` refuses it when its time comes
        own = np.max(steps, axis=0, initial=0.0, where=np.isfinite(steps))
        own = np.where(own > 0, own, np.abs(actions[0] - self._last) / RAMP_TICKS)
        self._ramp = np.where(self._is_absolute & np.isinf(self._step), own, np.inf)

    def check(self, action: np.ndarray) -> np.ndarray | None:
        """Return the action (A,) as it may be executed, None if it is refused: not finite.

        Raises:
            BadSetting: the action has another size than limits and kinds, or holds no real numbers.
        """
        self._check(action)
        if not np.isfinite(action).all():
            self.interventions += 1
            return None
        return self.limit(action)

    def limit(self, action: np.ndarray) -> np.ndarray:
        """Return a finite action (A,) moved into the limits; the next step is measured from there.

        Raises:
            BadSetting: as of `check`.
        """
        self._check(action)
        wanted: np.ndarray = self._slowed(action) if self.limits.has_rates else action
        last = self._last
        if last is None:
            wanted = np.clip(wanted, self._low, self._high)
        else:
            wanted = np.clip(wanted, np.minimum(self._low, last), np.maximum(self._high, last))
            step = np.minimum(self._step, self._ramp)
            wanted = np.clip(wanted, last - step, last + step)
        allowed = np.asarray(wanted, dtype=action.dtype)  # a limit as precise as the action
        if self.limits.has_rates:
            self._moved = self._motion(allowed)
        is_same = allowed == action
        self._ramp = np.where(is_same, np.inf, self._ramp)
        self.interventions += not is_same.all()
        self._last = action if is_same.all() else allowed
        return self._last

    def _check(self, action: np.ndarray) -> None:
        if self._action_dim is not None and action.shape != (self._action_dim,):
            raise BadSetting(
                f"limits are for {self._action_dim} dimensions, an action has shape {action.shape}; a policy "
                "gives one number a dimension"
            )
        if action.dtype.kind != "f":
            raise BadSetting(f"an action is of type {action.dtype}; real numbers are needed")

    def _motion(self, action: np.ndarray) -> np.ndarray:
        """What an action moves each dimension by, in one period; zero of a first target."""
        start = action if self._last is None else self._last
        return np.where(self._is_absolute, action - start, action * self._scale)

    def _slowed(self, action: np.ndarray) -> np.ndarray:
        """Return the action with its speed and the change of its speed inside the limits."""
        wanted = self._motion(action)
        moved = wanted
        if self.limits.max_acceleration is not None and self._moved is not None:
            change = np.asarray(self.limits.max_acceleration) * self._period_s**2
            moved = np.clip(moved, self._moved - change, self._moved + change)
        if self.limits.max_velocity is not None:
            most = np.asarray(self.limits.max_velocity) * self._period_s
            moved = np.clip(moved, -most, most)
        start = action if self._last is None else self._last
        slowed: Any = np.where(self._is_absolute, start + moved, moved / self._scale)
        return np.where(moved == wanted, action, slowed)  # what may stay is not rounded


def _or(values: tuple[float, ...] | None, none: float) -> np.ndarray:
    """Values (A,), or one that stands for all where there is no limit."""
    return np.array(none if values is None else values, dtype=float)
