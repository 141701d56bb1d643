"""What a schedule rests on, for the report: how alike a block's outputs are, and when it is computed."""

from typing import Any

import numpy as np

from vivace.accel.explain import grid
from vivace.accel.record import record
from vivace.accel.rows import schedule_of
from vivace.accel.technique import CalibrationData, denoising
from vivace.policies.execution import Execution

_MOST_STEPS = 50
"""Steps shown of a similarity matrix, evenly picked."""


def calibration_section(accelerated: Execution, data: CalibrationData) -> dict[str, Any] | None:
    """Similarity, volatility and schedule of every block; None if the plan computes everything.

    Args:
        accelerated: the policy under its plan.
        data: observations to record on.

    Returns:
        "steps" shown of the sampler, "similarity" {block: (n, n) in percent}, "volatility" {block: mean
        absolute change between steps}, "grid" {block: one mark a step}, "distinct_steps".
    """
    schedule = schedule_of(accelerated)
    if schedule is None:
        return None
    recording = record(denoising(accelerated, "a cache schedule"), data)
    n_steps = len(schedule.rows)
    picks = np.unique(np.linspace(0, n_steps - 1, min(n_steps, _MOST_STEPS)).astype(int))
    return {
        "steps": picks.tolist(),
        "similarity": {
            name: np.rint(100 * matrix[np.ix_(picks, picks)]).astype(int).tolist()
            for name, matrix in recording.similarity.items()
        },
        "volatility": {name: round(value, 5) for name, value in recording.volatility.items()},
        "grid": grid(accelerated),
        "distinct_steps": schedule.programs,
    }
