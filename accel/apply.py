"""Apply a plan, and make one, or many on the same observations."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vivace.accel.judgement import FITTED
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import exact_work, technique_class
from vivace.accel.technique import CalibrationData, Technique
from vivace.accel.variant import Request
from vivace.policies.batch import rows_of
from vivace.policies.errors import CalibrationError, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import Execution, as_trained, eagerly, executing, sample
from vivace.policies.plain_data import plain
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.spec import ChunkExecution, Fingerprint
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
    execution = as_trained(_executed(policy, plan.execution))
    for technique in plan.techniques:
        execution = _apply(technique, execution)
    return replace(execution, plan=plan)


class Calibrator:
    """Makes plans of one policy on the same observations; what several of them share is calibrated once.

    Techniques are calibrated in the order of their seams, each on the policy as the earlier ones left it. So
    one that comes behind the same ones with the same options as in an earlier plan is the same; and what is
    found of the policy as trained, or with exact work removed, is `remembered`.
    """

    def __init__(self, policy: StagedPolicy, fingerprint: Fingerprint, data: CalibrationData) -> None:
        """Prepare.

        Args:
            policy: a staged policy.
            fingerprint: of the policy, stored in the plans.
            data: observations to calibrate on.

        Raises:
            CalibrationError: there are no observations, or not as many noise keys.
        """
        rows = rows_of(data.batch)
        if rows != len(data.noise_keys) or not rows:
            raise CalibrationError(
                f"calibration has {len(data.noise_keys)} noise keys and a batch of {rows} observations; "
                "at least one observation and a key for each are needed"
            )
        self._fingerprint, self._data = fingerprint, data
        self._bare = as_trained(policy)
        self._known: dict[str, Technique] = {}
        self._exact: dict[str, Execution] = {}

    def plan(self, wanted: Sequence[Request]) -> tuple[AccelerationPlan, Execution]:
        """Calibrate techniques; nobody has run them together yet.

        Args:
            wanted: (kind, options) of every technique, in any order.

        Returns:
            The plan, its measurements name the episodes it was fitted to, so that it is judged on others; and
            the policy's execution under it.
        """
        execution, techniques, asked = self._bare, list[Technique](), list[Any]()
        for kind, options in sorted(wanted, key=lambda entry: (technique_class(entry[0]).seam, entry[0])):
            asked.append([kind, plain(options)])
            key = json.dumps(asked, sort_keys=True)
            technique = self._known.get(key)
            if technique is None:
                technique = technique_class(kind).calibrate(execution, self._data, dict(options))
            if not getattr(technique, "tensors", {}):  # those of many plans may not fit into memory
                self._known[key] = technique
            techniques.append(technique)
            execution = self._exact.get(key) or _apply(technique, execution)
            if all(one.is_exact for one in techniques):  # few, and others are calibrated on them
                self._exact[key] = execution
        plan = AccelerationPlan(self._fingerprint, tuple(techniques), {FITTED: sorted(self._data.seeds)})
        return plan, replace(execution, plan=plan)


def calibrate(
    policy: StagedPolicy,
    fingerprint: Fingerprint,
    data: CalibrationData,
    wanted: Sequence[Request],
) -> AccelerationPlan:
    """Return the plan of `calibrated`, by itself."""
    return calibrated(policy, fingerprint, data, wanted)[0]


def calibrated(
    policy: StagedPolicy,
    fingerprint: Fingerprint,
    data: CalibrationData,
    wanted: Sequence[Request],
) -> tuple[AccelerationPlan, Execution]:
    """Calibrate techniques, and see that finite actions come of them; arguments as of `Calibrator`.

    Returns:
        The plan, and the policy's execution under it. What goes on with the execution keeps a plan's own
        weights once: a second one, of the same plan, would make them again (those of a language model in
        int8 are gigabytes).

    Raises:
        CalibrationError: there are no observations, or not as many noise keys.
        NonFiniteActions: under the plan some of the observations lead to NaN or infinity.
    """
    plan, execution = Calibrator(policy, fingerprint, data).plan(wanted)
    sample(eagerly(execution), data.batch, EpisodeNoise(data.noise_keys), data.draft)
    return plan, execution


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


def _executed(policy: StagedPolicy, execution: ChunkExecution) -> StagedPolicy:
    """A policy whose chunks are executed as a plan says.

    Raises:
        PlanMismatch: its chunks have fewer actions.
    """
    spec, n, at = policy.spec, execution.n_action_steps, execution.request_at
    available = spec.horizon - spec.first_action
    if (n or 0) > available:
        raise PlanMismatch(f"the plan executes {n} actions of a chunk, this policy's have {available}")
    if at is not None and at > (n or spec.n_action_steps):
        raise PlanMismatch(
            f"the plan asks for the next chunk with {at} actions left, and {n or spec.n_action_steps} are "
            "executed"
        )
    return executing(policy, n, request_at=at, mode=execution.mode)


def _apply(technique: Technique, execution: Execution) -> Execution:
    technique.seam.check(technique.kind, execution)
    technique.check(execution)
    return technique.apply(execution)
