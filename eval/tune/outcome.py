"""What came of a search: the plan and what was measured of it, or that none keeps the budget."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.eval.machine import machine
from vivace.eval.options import CommonOptions
from vivace.eval.terminal import milliseconds
from vivace.eval.tune.budget import tail
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.space import describe
from vivace.eval.tune.timing import median_s
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy


@dataclass(frozen=True)
class Latency:
    """How long chunks of one trial take."""

    p50_s: float
    tail_s: float
    percent: float
    """Which percentile the tail is: the 99th if there are a hundred measurements."""
    n: int

    @classmethod
    def of(cls, trial: Trial) -> "Latency":
        """Of a trial that was timed."""
        percent, tail_s = tail(trial.latencies_s)
        return cls(median_s(trial), tail_s, percent, len(trial.latencies_s))

    @property
    def told(self) -> str:
        """The tail in words."""
        what = f"p{self.percent:g}" if self.n >= 100 else f"p{self.percent:g} of {self.n} chunks"
        return f"{milliseconds(self.tail_s, 1)} ms {what}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"p50_s": self.p50_s, f"p{self.percent:g}_s": self.tail_s, "n": self.n}


def as_trained(trials: Iterable[Trial]) -> Trial:
    """The trial of the policy as trained.

    Raises:
        BadSetting: it could not be run, so that there is nothing to compare with.
    """
    found = next(trial for trial in trials if trial.candidate.origin is Origin.TRAINED)
    if found.status is Status.FAILED:
        raise BadSetting(f"the policy as trained cannot be run: {found.reason}")
    return found


def measurements(
    command: CommonOptions, loaded: LoadedPolicy, rule: Rule, best: Trial, trained: Trial
) -> dict[str, Any]:
    """What a plan file says of the plan that a search chose."""
    found: dict[str, Any] = {
        **machine(loaded.placement),
        "action_error": best.action_error,
        "flop_ratio": (best.flops or 0) / max(1, trained.flops or 0),
        "env": command.env.named if command.env.is_named else "",
        "budget": rule.budget.told,
        "budget_s": rule.budget.of(best.candidate),
        "latency": Latency.of(best).to_json(),
        "latency_as_trained": Latency.of(trained).to_json(),
        "execution": {k: v for k, v in vars(best.candidate.execution).items() if v is not None},
        "judged_by": "success" if best.confirmed else "action error",
    }
    if best.confirmed:
        found["success"] = {"successes": sum(best.confirmed.values()), "n": len(best.confirmed)}
        found["success_as_trained"] = {
            "successes": sum(trained.confirmed.values()),
            "n": len(trained.confirmed),
        }
    return found


def with_measurements(plan: AccelerationPlan, found: Mapping[str, Any]) -> AccelerationPlan:
    """A plan that also says what was measured of it."""
    return replace(plan, measurements={**plan.measurements, **found})


def sentence(rule: Rule, best: Trial, trained: Trial) -> str:
    """What a person can repeat, where no world has judged."""
    before, now = Latency.of(trained), Latency.of(best)
    hz = rule.budget.control_hz
    kept = f"{hz:g} Hz is kept" if rule.budget.seconds is None else f"{rule.budget.told} is kept"
    return (
        f"{kept}: {before.told} as trained, {now.told} under the plan ({describe(best.candidate)}), with "
        f"actions {best.action_error:.3f} from those as trained; success was not judged: no world was named"
    )


def too_slow(rule: Rule, fastest: Trial) -> str:
    """That nothing keeps the budget, and what comes nearest."""
    latency, wanted_s = Latency.of(fastest), rule.budget.of(fastest.candidate)
    return (
        f"no plan keeps the budget of {milliseconds(wanted_s, 1)} ms: the fastest, "
        f"{describe(fastest.candidate)}, takes {latency.told}, with actions {fastest.action_error:.3f} from "
        "those as trained; no plan was written"
    )


def rows(trials: Iterable[Trial], rule: Rule) -> list[dict[str, Any]]:
    """Every trial as plain data, for results.json and the page."""
    found = []
    for trial in trials:
        row = trial.to_json() | {"key": trial.key, "label": describe(trial.candidate)}
        row |= {"budget_s": rule.budget.of(trial.candidate), "latencies_s": len(trial.latencies_s)}
        if trial.latencies_s:
            row |= {
                "latency": Latency.of(trial).to_json(),
                "keeps_budget": rule.budget.is_kept(trial.candidate, trial.latencies_s),
            }
        found.append(row)
    return found


def save(plan: AccelerationPlan, target: Path) -> Path:
    """Write a plan; returns its file."""
    plan.save(target)
    return target / FILE_NAME


def execution_flags(candidate: Candidate) -> list[str]:
    """Flags by which other verbs execute chunks as a candidate does."""
    return [
        f"--loop.{name}={value}" for name, value in vars(candidate.execution).items() if value is not None
    ]
