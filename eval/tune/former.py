"""The plan that lies beside the checkpoint: what somebody made by hand, or an earlier search."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.accel.technique import Technique
from vivace.accel.variant import Request
from vivace.eval.terminal import console
from vivace.eval.tune.candidate import Candidate, Origin
from vivace.policies.errors import VivaceError, in_one_line
from vivace.policies.load import LoadedPolicy
from vivace.policies.spec import Mode


def former(
    loaded: LoadedPolicy, exact: tuple[Request, ...] = (), modes: Sequence[Mode] = (Mode.ASYNC,)
) -> tuple[Candidate, ...]:
    """Return the plan beside a checkpoint as a candidate, to be calibrated anew; none if there is none.

    One that does not fit the policy is told, and passed over.

    Args:
        loaded: the policy.
        exact: what removes work at no error: it is added where the plan has none of its kind.
        modes: in which chunks may be executed, the loop's own first; a plan for another is run in that.
    """
    file = Path(loaded.path) / FILE_NAME
    if not file.is_file():
        return ()
    try:
        plan = AccelerationPlan.load(loaded.path)
        plan.check(loaded.fingerprint)
    except VivaceError as error:
        told = f"the plan beside the checkpoint is not looked at: {in_one_line(error)}"
        console.print(told, style="yellow", highlight=False)
        return ()
    requests = tuple((technique.kind, _options(technique)) for technique in plan.techniques)
    kinds = {kind for kind, _ in requests}
    added = tuple(request for request in exact if request[0] not in kinds)
    label = "the plan beside the checkpoint"
    execution = plan.execution
    if execution.mode not in modes[1:]:
        execution = replace(execution, mode=None)
    return (Candidate((*requests, *added), execution, Origin.FORMER, label),)


def _options(technique: Technique) -> dict[str, Any]:
    """The options that a technique was calibrated with."""
    names = {one.name for one in fields(technique.Options)}
    asked = getattr(technique, "options", None) or vars(technique)  # where more was found than was asked for
    return {name: value for name, value in asked.items() if name in names}
