"""What came of a search, in one sentence that a person can repeat."""

from collections.abc import Sequence
from dataclasses import dataclass

from vivace.eval.measure.statistics import PairedDifference
from vivace.eval.terminal import milliseconds


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A plan, and the tail of how long its chunks take."""

    label: str
    tail_s: float
    percent: float = 99.0
    """Which percentile the tail is."""
    action_error: float | None = None
    """Mean distance of its normalised actions from those as trained; None where nobody can tell."""


@dataclass(frozen=True, kw_only=True)
class Success:
    """Confirmed on fresh episodes, each plan under its own latency."""

    planned: int
    """Episodes solved under the plan."""
    trained: int = 0
    """Episodes solved as trained."""
    difference: PairedDifference | None = None
    """Planned minus as trained; None where as trained failed."""
    n: int = 0
    """Episodes that the plan met, where as trained met the first of them alone; 0: the same ones."""
    solved: int = 0
    """Those of them that the plan solved."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a search that found a plan."""

    budget: str
    """What was to be kept: "20 Hz", "50 ms"."""
    trained: Timed | None
    """None where nobody could time it."""
    plan: Timed
    trained_failed: str = ""
    """What was raised of the policy as trained; empty: it ran."""
    is_trained: bool = False
    """Whether the plan is to leave the policy as it is."""
    is_baseline: bool = False
    """Whether the plan needs no search, such as exact work removed or fewer steps."""
    beaten: str = ""
    """What won the race and did not hold on fresh episodes; empty if the plan itself won it."""
    success: Success | None = None
    """None where no world has judged."""
    unjudged: str = "no world was named"
    """Why none has."""
    useless: Sequence[str] = ()
    """Names of the techniques that were tried and are on no front."""


def sentence(found: Found) -> str:
    """Say what a plan keeps, what it costs and what did it.

    Such as "20 Hz is kept: 412 → 38 ms p99, success 93 of 100 as trained, 92 planned (-1, -5 … +3 points);
    DPM-Solver++ with 4 steps did it, block cache added nothing".
    """
    kept = f"{found.budget} is kept"
    if found.is_trained:
        return f"{kept} as trained: {_tail(found.plan)}, {_own(found)}; {_why(found)}"
    failed = f" (as trained it failed: {found.trained_failed})" if found.trained_failed else ""
    return f"{kept}: {_speed(found)}, {_cost(found)}{failed}; {_why(found)}"


def too_slow(budget: str, wanted_s: float, fastest: Timed) -> str:
    """Say that nothing keeps a budget, and what comes nearest.

    Args:
        budget: what was to be kept.
        wanted_s: what that leaves the fastest plan for a chunk [s].
        fastest: of all plans.
    """
    return (
        f"no plan keeps {budget}, which leaves a chunk {milliseconds(wanted_s, 1)} ms: the fastest, "
        f"{fastest.label}, takes {milliseconds(fastest.tail_s, 1)} ms p{fastest.percent:g}"
        f"{_distance(fastest, ', with')}; no plan was written"
    )


def _speed(found: Found) -> str:
    """Latency as trained, where it is known, and under the plan."""
    if found.trained is None:
        return _tail(found.plan)
    if found.trained.percent != found.plan.percent:
        return f"{_tail(found.trained)} → {_tail(found.plan)}"
    return f"{milliseconds(found.trained.tail_s)} → {_tail(found.plan)}"


def _tail(plan: Timed) -> str:
    return f"{milliseconds(plan.tail_s)} ms p{plan.percent:g}"


def _own(found: Found) -> str:
    """Success where the plan is to change nothing."""
    if found.success is None:
        return f"success was not judged, for {found.unjudged}"
    pair = found.success.difference
    return f"success {found.success.planned} of {found.success.n if pair is None else pair.n}"


def _cost(found: Found) -> str:
    """What the plan costs: success if a world has judged, else what is known of its actions."""
    if found.success is None:
        distance = _distance(found.plan, "") or "actions that cannot be compared"
        return f"{distance.strip()} (success was not judged, for {found.unjudged})"
    pair = found.success.difference
    if pair is None:
        return f"success {found.success.planned} of {found.success.n} planned"
    low, high = (f"{100 * bound:+.0f}" for bound in pair.interval)
    in_all = f", {found.success.solved} of {found.success.n} in all" if found.success.n > pair.n else ""
    return (
        f"success {found.success.trained} of {pair.n} as trained, {found.success.planned} planned "
        f"({100 * pair.difference:+.0f}, {low} … {high} points){in_all}"
    )


def _distance(plan: Timed, before: str) -> str:
    if plan.action_error is None:
        return ""
    return f"{before} actions {plan.action_error:.3f} from those as trained"


def _why(found: Found) -> str:
    """What did it, what did not hold, and what added nothing."""
    if found.is_trained:
        did = "nothing that was tried did better"
    elif found.is_baseline:
        did = f"{found.plan.label} alone did it"
    else:
        did = f"{found.plan.label} did it"
    if found.beaten:
        did += f" ({found.beaten} won the race and did not hold on fresh episodes)"
    if not found.useless or found.is_trained:
        return did
    names = ", ".join(found.useless)
    return f"{did}, {names} added nothing"
