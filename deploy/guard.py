"""Limits every action passes before it reaches the robot."""

from dataclasses import dataclass

import numpy as np

from vivace.policies.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits in the robot's units, one number a dimension; one that is not given does not apply."""

    low: tuple[float, ...] | None = None
    """Smallest values."""
    high: tuple[float, ...] | None = None
    """Largest values."""
    max_step: tuple[float, ...] | None = None
    """Largest changes between two ticks."""

    def __post_init__(self) -> None:
        """Limits must agree in length, be ordered, and steps positive."""
        given = {name: values for name, values in vars(self).items() if values is not None}
        if len({len(values) for values in given.values()}) > 1:
            raise BadSetting(f"limits have different lengths: {given}; give one number per action dimension")
        if any(np.isnan(values).any() for values in given.values()):
            raise BadSetting(f"limits hold NaN: {given}; leave out a limit that does not apply")
        if self.low is not None and self.high is not None and np.any(np.greater(self.low, self.high)):
            raise BadSetting(f"limits have low {self.low} above high {self.high}; swap them")
        if self.max_step is not None and np.any(np.less_equal(self.max_step, 0)):
            raise BadSetting(f"max_step {self.max_step} must be above 0 in every dimension")

    @property
    def action_dim(self) -> int | None:
        """Action size the limits are for, None if there are none."""
        return next(
            (len(values) for values in (self.low, self.high, self.max_step) if values is not None), None
        )


class ActionGuard:
    """Keeps actions finite, inside bounds and steps; counts every intervention."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._last: np.ndarray | None = None
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
        allowed = action
        if self.limits.max_step is not None and self._last is not None:
            step = np.asarray(self.limits.max_step)
            allowed = np.clip(allowed, self._last - step, self._last + step)
        if self.limits.low is not None or self.limits.high is not None:
            allowed = np.clip(allowed, self.limits.low, self.limits.high)
        allowed = np.asarray(allowed, dtype=action.dtype)  # a limit as precise as the action
        if np.array_equal(allowed, action):
            self._last = action
            return action
        self.interventions += 1
        self._last = allowed
        return allowed
