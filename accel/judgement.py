"""What a plan is judged on is never what it was fitted to."""

from collections.abc import Collection, Iterable

from vivace.accel.plan import AccelerationPlan
from vivace.policies.errors import BadSetting, PlanMismatch

FITTED = "fitted_seeds"
"""Where a plan's measurements name the seeds of the episodes that it was calibrated on."""


def fitted_seeds(plan: AccelerationPlan) -> frozenset[int]:
    """Seeds of the episodes a plan was calibrated on, as far as it says; the first alone of older plans.

    Raises:
        PlanMismatch: what it says are no seeds.
    """
    first = plan.measurements.get("seed")
    seeds = plan.measurements.get(FITTED, [] if first is None else [first])
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise PlanMismatch(
            f"the plan says it was calibrated on episodes {seeds!r}, which are no seeds; recalibrate: "
            "vivace calibrate --policy.path=…"
        )
    return frozenset(seeds)


def check_apart(fitted: Collection[int], judged: Iterable[int]) -> None:
    """Refuse to judge on episodes that were fitted to.

    Args:
        fitted: seeds of a plan (`fitted_seeds`), or of the observations it is being calibrated on.
        judged: seeds of the episodes it is to run, or that the observations are of (`CalibrationData.seeds`).

    Raises:
        BadSetting: they share a seed.
    """
    shared = sorted(set(fitted).intersection(judged))
    if shared:
        raise BadSetting(
            f"episode {shared[0]} was calibrated on, and is asked to judge by; judge by others: another "
            "--seed, or observations of other episodes"
        )
