"""Limits every action passes before it reaches the robot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.policies.errors import BadSetting
from vivace.policies.types import ActionKind


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

    Where limits contradict each other the later one holds of: acceleration, velocity, step, bounds.
    A robot at its bound stops there, however suddenly.

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
        self._is_absolute = np.array([kind == ActionKind.ABSOLUTE for kind in kinds])
        self._scale = np.array([period_s if kind == ActionKind.VELOCITY else 1.0 for kind in kinds])
        self._period_s = period_s or 0.0
        self._last: np.ndarray | None = None
        self._moved: np.ndarray | None = None
        """What the last action moved each dimension by, in one period."""
        self.interventions = 0
        """Actions refused or changed so far."""

    def check(self, action: np.ndarray) -> np.ndarray | None:
        """Return the action (A,) as it may be executed, None if it is refused: not finite."""
        if not np.isfinite(action).all():
            self.interventions += 1
            return None
        return self.limit(action)

    def limit(self, action: np.ndarray) -> np.ndarray:
        """Return a finite action (A,) moved into the limits; the next step is measured from there.

        Raises:
            BadSetting: the action has another size than the limits.
        """
        if self.limits.action_dim is None:
            return action
        if action.shape != (self.limits.action_dim,):
            raise BadSetting(
                f"limits are for {self.limits.action_dim} dimensions, an action has {action.size}"
            )
        allowed = self._slowed(action) if self.limits.has_rates else action
        if self.limits.max_step is not None and self._last is not None:
            step = np.asarray(self.limits.max_step)
            allowed = np.clip(allowed, self._last - step, self._last + step)
        if self.limits.low is not None or self.limits.high is not None:
            allowed = np.clip(allowed, self.limits.low, self.limits.high)
        allowed = np.asarray(allowed, dtype=action.dtype)  # a limit as precise as the action
        if self.limits.has_rates:
            self._moved = self._motion(allowed)
        if np.array_equal(allowed, action):
            self._last = action
            return action
        self.interventions += 1
        self._last = allowed
        return allowed

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
