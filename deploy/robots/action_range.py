"""Limits by default: what the actions were that a policy learned from, and what that allows a robot.

    bounds   the statistics of the training data: min to max where they are known, else quantiles, widened by
             a quarter of what is between them, else mean ± 4 standard deviations
    step     twice the largest change between two control periods that was seen of the policy, but no more
             than the bounds are apart; a tenth of that where nothing moved

Bounds hold for every kind of action, and 0 is inside those of displacements and velocities, which else could
never stop. The step holds for absolute targets: displacements are steps themselves, and a velocity that may
change only so fast could not brake.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vivace.deploy.loop.guard import Limits
from vivace.deploy.robots.limits import load_limits
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, ActionRange, PolicySpec

NONE = "none"
"""What is given in place of a file by who wants no limits."""
_QUANTILES = (("q01", "q99"), ("q10", "q90"))
_WIDENED, _DEVIATIONS, _TIMES, _SHARE = 0.25, 4.0, 2.0, 0.1
_ROUNDING = 1e-5
"""Of the range; less beyond it is no excess."""


def learned_range(
    statistics: Mapping[str, np.ndarray], steps: np.ndarray, steps_from: str
) -> ActionRange | None:
    """Return what a policy's actions were, from what is known of its training data.

    Args:
        statistics: lerobot's names -> one number a dimension (A,).
        steps: largest changes between two control periods that were seen (A,).
        steps_from: where, in words.

    Returns:
        The range; None if no statistics are known.
    """
    found = _bounds({name: np.asarray(values, np.float64).reshape(-1) for name, values in statistics.items()})
    if found is None:
        return None
    low, high, source = found
    span = high - low
    seen = np.where(np.isfinite(steps), steps, 0.0)
    step = np.where(seen > 0, np.minimum(_TIMES * seen, span), _SHARE * span)
    step = np.where(step > 0, step, 0.01 * np.maximum(np.abs(low), 1.0))  # one that never moved in training
    return ActionRange(
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        step=tuple(step.tolist()),
        bounds_from=source,
        step_from=f"{_TIMES:g} times the largest {steps_from}, else {_SHARE:g} of the range",
    )


def _bounds(statistics: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, str] | None:
    if {"min", "max"} <= set(statistics):
        return statistics["min"], statistics["max"], "min and max of the training data"
    for low, high in _QUANTILES:
        if {low, high} <= set(statistics):
            wide = _WIDENED * (statistics[high] - statistics[low])
            source = f"{low} and {high} of the training data, widened by {_WIDENED:g} of the range"
            return statistics[low] - wide, statistics[high] + wide, source
    if {"mean", "std"} <= set(statistics):
        wide = _DEVIATIONS * statistics["std"]
        source = f"mean ± {_DEVIATIONS:g} standard deviations of the training data"
        return statistics["mean"] - wide, statistics["mean"] + wide, source
    return None


def learned_limits(known: ActionRange, kinds: Sequence[ActionKind]) -> Limits:
    """Return the limits that a policy's training data set to its actions, by kind of action."""
    is_absolute = np.array([kind == ActionKind.ABSOLUTE for kind in kinds])
    low, high, step = (np.array(values, float) for values in (known.low, known.high, known.step))
    slack = _ROUNDING * np.maximum(high - low, np.abs(low))
    low, high = low - slack, high + slack
    return Limits(
        low=tuple(np.where(is_absolute, low, np.minimum(low, 0.0)).tolist()),
        high=tuple(np.where(is_absolute, high, np.maximum(high, 0.0)).tolist()),
        max_step=tuple(np.where(is_absolute, step, np.inf).tolist()),
    )


def choose_limits(
    asked: str, names: Sequence[str], spec: PolicySpec, *, may_lack: bool = False
) -> tuple[Limits, str]:
    """Return the limits of a robot's actions, and where they are from.

    Args:
        asked: a YAML file or a URDF, "none", or "" for those of the training data.
        names: of the action's dimensions.
        spec: of the policy, the meaning of its actions known.
        may_lack: leave it without limits where nobody says any: a simulation, which nothing can hurt.

    Raises:
        BadSetting: the file is not right, or the training data's are not known and the robot is a real one.
    """
    if asked == NONE:
        return Limits(), "none, as asked for"
    if asked:
        return load_limits(asked, names, spec.action_kinds), asked
    known = spec.action_range
    if known is not None:
        return learned_limits(known, spec.action_kinds), f"{known.bounds_from}; step: {known.step_from}"
    if may_lack:
        return Limits(), "none: the bundle does not say what its training data were"
    raise BadSetting(
        "the bundle does not say what the actions of its training data were, the limits by default; "
        "export it again, give a limits file, or 'none' where the robot has limits of its own"
    )
