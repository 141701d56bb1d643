"""Apply a plan, and make one: two pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vivace.accel.judgement import FITTED
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import exact_work, technique_class
from vivace.accel.technique import CalibrationData, Technique
from vivace.policies.batch import rows_of
from vivace.policies.errors import CalibrationError, UnsupportedPolicy
from vivace.policies.execution import Execution, as_trained, sample
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.spec import Fingerprint
from vivace.policies.staged import StagedPolicy


def accelerate(
    policy: StagedPolicy, plan: AccelerationPlan, fingerprint: Fingerprint | None = None
) -> Execution:
    """Return the execution of `policy` under `plan`; the policy itself is unchanged.

    Args:
        policy: a staged policy.
        plan: its plan; a plan without techniques gives the policy's own execution, bit for bit.
        fingerprint: of the policy; when given, a plan made for another policy is refused.

    Raises:
        PlanMismatch: the plan was made for another policy, or a technique does not fit.
        UnsupportedPolicy: the policy lacks a stage that a technique works on.
    """
    if fingerprint is not None:
        plan.check(fingerprint)
        plan = replace(plan, fingerprint=fingerprint)
    execution = as_trained(policy)
    for technique in plan.techniques:
        execution = _apply(technique, execution)
    return replace(execution, plan=plan)


def calibrate(
    policy: StagedPolicy,
    fingerprint: Fingerprint,
    data: CalibrationData,
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
) -> AccelerationPlan:
    """Calibrate techniques in the order of their seams, each on the policy as the earlier ones left it.

    Args:
        policy: a staged policy.
        fingerprint: of the policy, stored in the plan.
        data: observations to calibrate on.
        wanted: (kind, options) of every technique, in any order.

    Returns:
        The plan; its measurements name the episodes it was fitted to, so that it is judged on others.

    Raises:
        CalibrationError: there are no observations, or not as many noise keys.
        NonFiniteActions: under the plan some of the observations lead to NaN or infinity.
    """
    rows = rows_of(data.batch)
    if rows != len(data.noise_keys) or not rows:
        raise CalibrationError(
            f"calibration has {len(data.noise_keys)} noise keys and a batch of {rows} observations; "
            "at least one observation and a key for each are needed"
        )
    execution = as_trained(policy)
    techniques: list[Technique] = []
    for kind, options in sorted(wanted, key=lambda entry: (technique_class(entry[0]).seam, entry[0])):
        technique = technique_class(kind).calibrate(execution, data, dict(options))
        execution = _apply(technique, execution)
        techniques.append(technique)
    sample(execution, data.batch, EpisodeNoise(data.noise_keys), data.draft)  # refuses NaN and infinity
    return AccelerationPlan(fingerprint, tuple(techniques), {FITTED: sorted(data.seeds)})


def exact_plan(policy: StagedPolicy, fingerprint: Fingerprint) -> AccelerationPlan:
    """Return the plan that removes work at no error, and does nothing else; no observations are needed.

    Args:
        policy: a staged policy.
        fingerprint: of the policy.

    Returns:
        A plan without techniques where there is nothing to leave out, or to compute once.
    """
    execution = as_trained(policy)
    found: list[Technique] = []
    for kind, options in exact_work(policy):
        try:
            technique = technique_class(kind).calibrate(execution, CalibrationData({}, ()), options)
            execution = _apply(technique, execution)
        except UnsupportedPolicy:  # it says of itself that with its settings there is none of it
            continue
        found.append(technique)
    return AccelerationPlan(fingerprint, tuple(found))


def _apply(technique: Technique, execution: Execution) -> Execution:
    technique.seam.check(technique.kind, execution)
    technique.check(execution)
    return technique.apply(execution)
