"""What to do when there is no action, by kind of action."""

from collections.abc import Sequence

import numpy as np

from vivace.policies.spec import ActionKind


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
