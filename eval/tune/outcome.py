"""What came of a search: the plan and what was measured of it, or that none keeps the budget."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.accel.registry import techniques
from vivace.eval.machine import machine
from vivace.eval.options import CommonOptions
from vivace.eval.output import write_json
from vivace.eval.race.confirm import Confirmation
from vivace.eval.race.ladder import Ladder
from vivace.eval.race.play import known_p99
from vivace.eval.race.sentence import Found, Success, Timed
from vivace.eval.race.sentence import sentence as told
from vivace.eval.race.sentence import too_slow as told_too_slow
from vivace.eval.tune.budget import tail
from vivace.eval.tune.candidate import Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.expected import median_s
from vivace.eval.tune.front import layers
from vivace.eval.tune.space import describe
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

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"p50_s": self.p50_s, f"p{self.percent:g}_s": self.tail_s, "n": self.n}


def as_trained(trials: Iterable[Trial]) -> Trial:
    """The trial of the policy as trained, which may have failed."""
    return next(trial for trial in trials if trial.candidate.origin is Origin.TRAINED)


def measurements(
    command: CommonOptions, loaded: LoadedPolicy, rule: Rule, best: Trial, trained: Trial
) -> dict[str, Any]:
    """What a plan file says of the plan that a search chose."""
    elsewhere = rule.budget.elsewhere
    found: dict[str, Any] = {
        **(machine(loaded.placement, loaded.dtype) if elsewhere is None else elsewhere.machine),
        **({} if elsewhere is None else {"predicted": elsewhere.told}),
        "action_error": best.action_error,
        "flop_ratio": (best.flops or 0) / trained.flops if trained.flops else None,
        "env": command.env.named if command.env.is_named else "",
        "budget": rule.budget.told,
        "budget_s": rule.budget.of(best.candidate),
        "latency": Latency.of(best).to_json(),
        **({"latency_as_trained": Latency.of(trained).to_json()} if trained.latencies_s else {}),
        **({"as_trained_failed": trained.reason} if trained.status is Status.FAILED else {}),
        "judged_by": "success" if best.confirmed else "action error",
    }
    if best.confirmed:
        found["success"] = {"successes": sum(best.confirmed.values()), "n": len(best.confirmed)}
        solved, n = sum(trained.confirmed.values()), len(trained.confirmed)
        found |= {"success_as_trained": {"successes": solved, "n": n}} if n else {}
    return found


def with_measurements(plan: AccelerationPlan, found: Mapping[str, Any]) -> AccelerationPlan:
    """A plan that also says what was measured of it."""
    return replace(plan, measurements={**plan.measurements, **found})


def sentence(
    rule: Rule, best: Trial, trials: Mapping[str, Trial], confirmation: Confirmation | None = None
) -> str:
    """What a person can repeat.

    Args:
        rule: of the search.
        best: the plan.
        trials: all, by key.
        confirmation: who won on fresh episodes; None where no world has judged.
    """
    trained = as_trained(trials.values())
    success, beaten = None, ""
    failed = trained.reason if trained.status is Status.FAILED else ""
    if confirmation is not None:
        beaten = "" if confirmation.has_held else confirmation.winner.label
        met = confirmation.outcomes[best.key]
        success = Success(planned=sum(met.values()), n=len(met), solved=sum(met.values()))
        if trained.key in confirmation.outcomes and not failed:
            own = confirmation.outcomes[trained.key]
            shared = own.keys() & met.keys()  # as trained may have met the first ones alone
            before, now = (sum(one[seed] for seed in shared) for one in (own, met))
            pair = confirmation.difference(trained.key)
            success = replace(success, trained=before, planned=now, difference=pair)
    found = Found(
        budget=rule.budget.named,
        trained=_timed(trained) if trained.latencies_s else None,
        trained_failed=failed,
        plan=_timed(best),
        is_trained=best.key == trained.key,
        is_baseline=best.candidate.origin.is_rival,
        beaten=beaten,
        success=success,
        unjudged="time was up before a race" if rule.is_world else Found.unjudged,
        useless=[techniques()[kind].label for kind, is_on in on_front(trials.values()).items() if not is_on],
    )
    return told(found)


def too_slow(rule: Rule, fastest: Trial) -> str:
    """That nothing keeps the budget, and what comes nearest."""
    return told_too_slow(rule.budget.named, rule.budget.of(fastest.candidate), _timed(fastest))


def on_front(trials: Iterable[Trial]) -> dict[str, bool]:
    """Kind of every technique that was tried -> whether a candidate with it is beaten by none.

    Neither in counted work and action error, nor in latency and action error; of techniques that every
    candidate has nothing is said.
    """
    known = [
        trial
        for trial in trials
        if trial.flops is not None and trial.action_error is not None and trial.status is not Status.FAILED
    ]
    tried = {kind for trial in known for kind in trial.candidate.kinds}
    exact = {k for trial in known if trial.candidate.origin is Origin.EXACT for k in trial.candidate.kinds}
    best: set[str] = set()
    compared = [trial for trial in known if trial.stage is not Status.COUNTED]  # on all observations
    for some, cost in (
        (compared, lambda trial: trial.flops),
        ([trial for trial in compared if trial.latencies_s], median_s),
    ):
        if some:
            points = np.array([[cost(trial), trial.action_error] for trial in some], float)
            best |= {kind for i in layers(points)[0] for kind in some[i].candidate.kinds}
    return {kind: kind in best for kind in techniques() if kind in tried - exact}


def _timed(trial: Trial) -> Timed:
    """A trial as its sentence tells it."""
    latency = Latency.of(trial)
    return Timed(
        label=describe(trial.candidate),
        tail_s=latency.tail_s,
        percent=latency.percent,
        action_error=None if trial.follows else trial.action_error,
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


def made(command: CommonOptions, counting: Counting, trial: Trial) -> AccelerationPlan:
    """Make the plan of a trial, which says how its chunks were executed."""
    plan, _ = counting.made(trial.candidate)
    return plan.executed(command.loop.executing(trial.candidate.execution).execution)


def save(plan: AccelerationPlan, target: Path) -> Path:
    """Write a plan; returns its file."""
    plan.save(target)
    return target / FILE_NAME


def save_ladder(
    command: CommonOptions, found: Ladder, trials: Mapping[str, Trial], counting: Counting, folder: Path
) -> dict[str, Any]:
    """Write ladder.json and, in a folder beside it, the plans of the ladder; returns what it says."""
    rungs = []
    for step in found.steps:
        trial, place = trials[step.key], folder / "ladder" / step.key
        place.mkdir(parents=True, exist_ok=True)
        save(made(command, counting, trial), place)
        rungs.append(
            {
                "plan": str(place),
                "label": describe(trial.candidate),
                "p99_s": known_p99(trial.latencies_s),
                "from_load": step.from_load,
            }
        )
    first, *others = found.steps
    flags = [
        f"--export.plans=[{','.join(str(rung['plan']) for rung in rungs)}]",
        f"--bundle=BUNDLE#{first.key}",
    ]
    if others:
        flags.append(f"--loop.ladder=[{','.join(f'#{one.key}@{one.from_load:g}' for one in others)}]")
    told = {"rungs": rungs, "told": found.told, "export_and_run_with": flags}
    write_json(folder / "ladder.json", told)
    return told
