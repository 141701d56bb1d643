"""`vivace tune`: a budget in, the best plan out.

Candidates are what the techniques offer that fit the policy. Their work is counted and their actions are
compared on observations; the promising ones are timed here, interleaved; with a world those that keep the
budget race in it on the same episodes, and the winner is confirmed on fresh ones beside the policy as
trained, exact work removed and fewer steps. Without a world the nearest actions decide, and every output says
so.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vivace.accel.compile import compile_execution
from vivace.accel.judgement import check_apart
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.eval.measure.threads import choose_threads, restored_threads
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.options import CommonOptions
from vivace.eval.output import claim, output_folder, write_json
from vivace.eval.report.results import circumstances
from vivace.eval.subject import load, session
from vivace.eval.terminal import console, progress
from vivace.eval.tune.budget import Budget, BudgetOptions
from vivace.eval.tune.candidate import Candidate, Origin, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.counting import Counting, count
from vivace.eval.tune.outcome import (
    Latency,
    as_trained,
    execution_flags,
    measurements,
    rows,
    save,
    sentence,
    too_slow,
    with_measurements,
)
from vivace.eval.tune.space import Space, describe, space_of
from vivace.eval.tune.store import Store
from vivace.eval.tune.study import Study
from vivace.eval.tune.timing import FEW, MANY, Timing, median_s
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy
from vivace.policies.session import Session


@dataclass(kw_only=True)
class TuneOptions:
    """How to search."""

    minutes: float = 30.0
    """Hard limit [min]: what is known by then decides."""
    candidates: int = 200
    """Candidates whose work is counted and whose actions are compared, at most."""
    samples: int = 16
    """Observations that actions are compared on."""
    timed: int = 16
    """Candidates that are timed because their work and their actions are promising; what has to be beaten is
    timed besides."""
    finalists: int = 6
    """Of those, how many are timed as often as a p99 takes."""
    techniques: list[str] | None = None
    """Kinds of techniques to search; all that fit the policy when not given. What has to be beaten, such as
    fewer steps, is looked at all the same."""
    threads: int | None = None
    """torch threads; when not given as many as are measured to be fastest."""
    compile: bool = False
    """Time torch.compile too, which no plan file holds (takes a minute or more to compile)."""

    def __post_init__(self) -> None:
        """There must be time, and something to look at."""
        for name in ("minutes", "candidates", "samples", "timed", "finalists"):
            if not getattr(self, name) > 0:
                raise BadSetting(f"tune.{name}={getattr(self, name)}; a number above 0 is needed")


@dataclass(frozen=True, kw_only=True)
class TunedLoop(LoopSettings):
    """How the loop executes chunks: thinking while it acts, unless the user says otherwise."""

    # a class of its own, for draccus reads defaults off classes
    mode: Mode = Mode.ASYNC
    """sync: act, then think; async: think while acting; rtc: async, and a chunk continues the one before."""


@dataclass(kw_only=True)
class TuneCommand(CommonOptions):
    """Find the plan that keeps a rate and costs the least; save it as acceleration.json.

    Example: vivace tune --policy.path=zoo/reach --env.task=reach-moving --budget.hz=20
    Without a world: vivace tune --policy.path=CHECKPOINT --data.repo=DATASET --budget.ms=50
    """

    tune: TuneOptions = field(default_factory=TuneOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    loop: TunedLoop = field(default_factory=TunedLoop)
    RUNS_LOOP = True

    def __post_init__(self) -> None:
        """The rate that is to be kept is the one at which the world runs."""
        super().__post_init__()
        self.RUNS_LOOP = not self.data.is_named  # of recorded data alone: no world is looked for
        if self.budget.hz is not None:
            if self.env.control_hz not in (None, self.budget.hz):
                raise BadSetting(
                    f"budget.hz={self.budget.hz:g} and env.control_hz={self.env.control_hz:g} are one rate; "
                    "give one of them"
                )
            self.env.control_hz = self.budget.hz


_COUNTED, _TIMED = 0.4, 0.65
"""Shares of the time by which the first and the second stage are over, where there is a third."""
_COUNTED_ALONE = 0.6
"""The same of the first, where there is none."""


@dataclass(frozen=True)
class Deadline:
    """The time there is."""

    limit_s: float
    began_s: float = field(default_factory=time.monotonic)

    def left_s(self, share: float = 1.0) -> float:
        """What is left of a share of it [s]."""
        return self.began_s + share * self.limit_s - time.monotonic()


@restored_threads()
def run(command: TuneCommand) -> tuple[dict[str, Any], bool]:
    """Count, time, race, confirm; save the plan, tell what it costs."""
    deadline = Deadline(60 * command.tune.minutes)
    loaded = load(command)
    if not command.env.is_named and not command.data.is_named:
        raise BadSetting(
            "a plan is found on observations, and none are named: give --env.type and --env.task (success is "
            "judged then), or --data.repo or --data.file"
        )
    space = space_of(loaded.staged, command.tune.techniques)
    hz = command.env.control_hz
    seconds = None if command.budget.ms is None else command.budget.ms / 1e3
    budget = Budget(command.loop, loaded.staged.spec, seconds, hz)
    rule = Rule(budget, command.env.is_named)
    folder = output_folder("tune", command.output_dir, command.job_name)
    claim(folder, _identity(command, loaded))
    store = Store(folder)
    console.print(f"budget: {budget.told}", highlight=False)
    search = Search(command, loaded, space, rule, store, deadline)
    search.count()
    search.time()
    kept = rule.sure(store.trials.values())
    if not kept:
        return _too_slow(command, loaded, rule, store, folder), False
    return _chosen(command, loaded, rule, store, search.counting, kept[0], folder), True


def _results(
    command: TuneCommand,
    loaded: LoadedPolicy,
    rule: Rule,
    store: Store,
    folder: Path,
    told: str,
    **found: Any,
) -> dict[str, Any]:
    """Write results.json; returns what the last line says."""
    trials = list(store.trials.values())
    results = circumstances("tune", command, loaded) | {
        "budget": {"told": rule.budget.told, "seconds": rule.budget.seconds, "hz": rule.budget.control_hz},
        "judged_by": "success" if rule.is_world else "action error",
        "sentence": told,
        "trials": rows(trials, rule),
        **found,
    }
    write_json(folder / "results.json", results)
    console.print(told, highlight=False)
    counts = Counter(trial.status.value for trial in trials)
    return {"results": str(folder / "results.json"), "sentence": told, "candidates": dict(counts), **found}


def _too_slow(
    command: TuneCommand, loaded: LoadedPolicy, rule: Rule, store: Store, folder: Path
) -> dict[str, Any]:
    """Tell that nothing keeps the budget; no plan is written."""
    fastest = rule.fastest(store.trials.values())
    if fastest is None:
        raise BadSetting(
            f"nothing was timed within tune.minutes={command.tune.minutes:g}; give more time: the same "
            "command with the same --output_dir goes on"
        )
    latency = Latency.of(fastest).to_json()
    found = {"plan": None, "fastest": {"label": describe(fastest.candidate), "latency": latency}}
    return _results(command, loaded, rule, store, folder, too_slow(rule, fastest), **found)


def _chosen(
    command: TuneCommand,
    loaded: LoadedPolicy,
    rule: Rule,
    store: Store,
    counting: Counting,
    best: Trial,
    folder: Path,
) -> dict[str, Any]:
    """Save the plan, and tell what it costs."""
    trained = as_trained(store.trials.values())
    plan, _ = counting.made(best.candidate)
    found = measurements(command, loaded, rule, best, trained)
    file = save(with_measurements(plan, found), loaded.path if command.output_dir is None else folder)
    told = {
        "plan": str(file),
        "winner": {"key": best.key, "label": describe(best.candidate)},
        "run_with": execution_flags(best.candidate),
        "measured": found,
    }
    return _results(command, loaded, rule, store, folder, sentence(rule, best, trained), **told)


class Search:
    """The stages of one search."""

    def __init__(
        self,
        command: TuneCommand,
        loaded: LoadedPolicy,
        space: Space,
        rule: Rule,
        store: Store,
        deadline: Deadline,
    ) -> None:
        """Look at observations, and let the policy as trained act on them."""
        self._command, self._loaded, self._space, self._rule = command, loaded, space, rule
        self._store, self._deadline = store, deadline
        fitted = observe(command, loaded)
        self._data = observe(command, loaded, seed=JUDGEMENT_SEED, samples=command.tune.samples)
        check_apart(fitted.seeds, self._data.seeds)
        self.counting = Counting(loaded, fitted, self._data)

    def count(self) -> None:
        """Count work and compare actions, many candidates."""
        options, rule = self._command.tune, self._rule
        share = _COUNTED if rule.is_world else _COUNTED_ALONE
        starters = self._space.starters(self._command.accel.chosen())
        starters = tuple(one for one in starters if options.compile or not one.is_compiled)
        with progress() as bars:
            bar = bars.add_task("counting work, comparing actions", total=options.candidates)

            def trial_of(candidate: Candidate) -> Trial:
                trial = self.counting.trial(candidate)
                if trial.reason and candidate.origin is not Origin.SEARCH:
                    console.print(
                        f"left out: {describe(candidate)}: {trial.reason}", style="yellow", highlight=False
                    )
                bars.update(bar, completed=len(self._store.trials) + 1)
                return trial

            def goes_on(known: int) -> bool:
                return known < options.candidates and self._deadline.left_s(share) > 0

            count(starters, Study(self._space, self._command.seed), self._store, trial_of, goes_on)

    def time(self) -> None:
        """Time the promising ones, interleaved; those near the budget often."""
        share = _TIMED if self._rule.is_world else 1.0
        options, rule, trials = self._command.tune, self._rule, self._store.trials
        exact = Candidate(self._space.exact)
        decides = {"exact": self._session(exact)}
        choose_threads(decides, options.threads)
        timing = Timing(lambda trial: self._session(trial.candidate), self._data, self._store)
        first = rule.first(list(trials.values()), options.timed)
        timing.time(first, FEW, self._deadline.left_s(share) / 3)
        more = rule.next(list(trials.values()), options.timed // 2)
        best = rule.keeping(trials.values())[:2]
        added = [self._counted(one) for trial in best for one in self._space.faster(trial.candidate)]
        timing.time(
            [*more, *(trial for trial in added if trial.is_alive)], FEW, self._deadline.left_s(share) / 3
        )
        self._tell_best()
        finalists = rule.finalists(list(trials.values()), options.finalists)
        while finalists and self._deadline.left_s(share) > 0:
            timing.time(finalists, MANY, self._deadline.left_s(share))
            kept = rule.keeping(trials.values())[:1]  # of few measurements it may seem to
            finalists = [trial for trial in kept if len(trial.latencies_s) < MANY]
        self._tell_best()

    def _counted(self, candidate: Candidate) -> Trial:
        """The trial of a candidate, counted if it is not yet known."""
        known = self._store.trials.get(candidate.key)
        return known or self._store.add(self.counting.trial(candidate))

    def _session(self, candidate: Candidate) -> Session:
        """A candidate as the loop calls it."""
        _, execution = self.counting.made(candidate)
        if candidate.is_compiled:
            execution = compile_execution(execution)
        return session(self._command, self._loaded, execution)

    def _tell_best(self) -> None:
        """Say which plan is the best by now."""
        kept = self._rule.sure(self._store.trials.values())
        if kept:
            best = kept[0]
            console.print(
                f"best so far: {describe(best.candidate)}: {1e3 * median_s(best):.1f} ms, actions "
                f"{best.action_error:.3f} from those as trained",
                highlight=False,
            )


def _identity(command: TuneCommand, loaded: LoadedPolicy) -> dict[str, Any]:
    """What must be the same for an interrupted search to be continued in its folder."""
    return {
        "verb": "tune",
        "weights": loaded.fingerprint.weights,
        "processors": loaded.fingerprint.processors,
        "techniques": command.tune.techniques,
        "calibration": [command.accel.episodes, command.accel.samples],
        "judgement": [command.accel.judged_episodes, command.tune.samples],
        "env": vars(command.env),
        "data": asdict(command.data),
        "seed": command.seed,
        "loop": f"{command.loop}",
    }
