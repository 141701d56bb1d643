"""`vivace tune`: a budget in, the best plan out.

Candidates are what the techniques offer that fit the policy. Their work is counted and their actions are
compared on observations; the promising ones are timed here, interleaved; with a world those that keep the
budget race in it on the same episodes, and the winner is confirmed on fresh ones beside the policy as
trained, exact work removed and fewer steps. Without a world the nearest actions decide, and every output says
so.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.eval.identity import digest
from vivace.eval.measure.latencies import chunk_latencies
from vivace.eval.measure.threads import restored_threads
from vivace.eval.options import CommonOptions
from vivace.eval.output import output_folder, read_json
from vivace.eval.profile.memory import CHUNKS, WithinMemory
from vivace.eval.profile.predicting import Predicting
from vivace.eval.profile.profile import Profile
from vivace.eval.race.importance import importance
from vivace.eval.report.results import circumstances, write_results
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.subject import load
from vivace.eval.terminal import console
from vivace.eval.tune.budget import Budget, BudgetOptions, Elsewhere
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.outcome import (
    Latency,
    as_trained,
    made,
    measurements,
    on_front,
    rows,
    save,
    save_ladder,
    sentence,
    too_slow,
    with_measurements,
)
from vivace.eval.tune.pace import Deadline
from vivace.eval.tune.search import Search
from vivace.eval.tune.space import describe, space_of
from vivace.eval.tune.store import Store
from vivace.eval.tune.timing import Measure
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy


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
    finalists: int = 8
    """Of those, how many are timed as often as a p99 takes, and race in a world."""
    n_episodes: int = 300
    """Episodes that those in a race meet at most, the same for all, as far as the time reaches; the hopeless
    are dropped before, and the race ends where one leads by enough."""
    confirm: int = 100
    """Fresh episodes on which the winner is confirmed, beside what needs no search."""
    techniques: list[str] | None = None
    """Kinds of techniques to search; all that fit the policy when not given. What has to be beaten, such as
    fewer steps, is timed and races all the same."""
    known: str = ""
    """Folder of a search of the same policy in the same world, for another budget, say: what it looked at,
    timed and played is taken over, and as many candidates again are bred for this budget."""
    lineup: bool = False
    """Also let each technique alone and each baseline meet the fresh episodes, and say which of them the plan
    is as good as; the confirmation and this meet all their episodes, after the time limit too."""
    ladder: bool = False
    """Also make a ladder of plans for a computer that is busy now and then, where one does better than its
    best plan alone; takes about as many episodes again, after the time limit too."""
    threads: int | None = None
    """torch threads; when not given as many as are measured to be fastest."""
    compile: bool = False
    """Try torch.compile too, alone and over the best plans; each takes a minute or more to compile here, and
    before the first chunk where the plan is used."""

    def __post_init__(self) -> None:
        """There must be time, and something to look at."""
        for name in ("minutes", "candidates", "samples", "timed", "finalists", "n_episodes", "confirm"):
            if not getattr(self, name) > 0:
                raise BadSetting(f"tune.{name}={getattr(self, name)}; a number above 0 is needed")


@dataclass(frozen=True, kw_only=True)
class TunedLoop(LoopSettings):
    """How the loop executes chunks: thinking while it acts, unless the user says otherwise."""

    # a class of its own, for draccus reads defaults off classes
    USUAL: ClassVar[Mode] = Mode.ASYNC

    mode: Mode | None = None
    """sync: act, then think; async: think while acting; rtc: async, and a chunk continues the one before.
    When not given async, and rtc is tried of what wins."""


@dataclass(kw_only=True)
class TuneCommand(CommonOptions):
    """Find the plan that keeps a rate and costs the least; save it as acceleration.json.

    Example: vivace tune --policy.path=zoo/reach --env.task=reach-moving --budget.hz=20
    Without a world: vivace tune --policy.path=CHECKPOINT --data.repo=DATASET --budget.ms=50
    For another machine, which vivace bench --bench.profile=robot.json was run on: --budget.device=robot.json
    """

    tune: TuneOptions = field(default_factory=TuneOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    loop: TunedLoop = field(default_factory=TunedLoop)
    scale: ScaleOptions = field(default_factory=ScaleOptions)
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


@restored_threads()
def run(command: TuneCommand, measure: Measure = chunk_latencies) -> tuple[dict[str, Any], bool]:
    """Count, time, race, confirm; save the plan, tell what it costs.

    Args:
        command: what was asked for.
        measure: times chunks; the clock of this machine, unless it is known how long they take.
    """
    deadline = Deadline(60 * command.tune.minutes)
    loaded = load(command)
    is_open, command.loop = command.loop.mode is None, command.loop.settled(None)
    if not command.env.is_named and not command.data.is_named:
        raise BadSetting(
            "a plan is found on observations, and none are named: give --env.type and --env.task (success is "
            "judged then), or --data.repo or --data.file"
        )
    elsewhere, measure = _machine(command, loaded, measure)
    asked = command.tune
    may_continue = is_open and elsewhere is None  # no profile has times of both
    space = space_of(loaded.staged, asked.techniques, command.env.is_named, asked.compile, may_continue)
    hz = command.env.control_hz
    seconds = None if command.budget.ms is None else command.budget.ms / 1e3
    budget = Budget(command.loop, loaded.staged.spec, seconds, hz, elsewhere)
    rule = Rule(budget, command.env.is_named)
    folder = output_folder("tune", command.output_dir, command.job_name)
    store = Store.begun(folder, _identity(command, loaded), command.tune.known)
    console.print(f"budget: {budget.told}", highlight=False)
    once = 1 if command.budget.memory_mb is None else 1 + CHUNKS
    search = Search(command, loaded, space, rule, store, deadline, measure, once)
    search.count()
    search.time()
    for trial in store.trials.values():
        if trial.status is not Status.FAILED and (why := _why_out(trial)):  # what failed was named then
            told = f"left out: {describe(trial.candidate)}: {why}"
            console.print(told, style="yellow", highlight=False)
    kept = rule.sure(store.trials.values())
    if not kept:
        return _too_slow(command, loaded, rule, store, folder, deadline), False
    state, confirmation = search.finals.race() if rule.is_world else (None, None)
    kept = rule.sure(store.trials.values())
    if not kept:  # whoever kept the budget failed
        return _too_slow(command, loaded, rule, store, folder, deadline), False
    known = [trial for trial in kept if not trial.follows]  # without a race nobody knows of the others
    best = (known or kept)[0] if confirmation is None else store.trials[confirmation.plan.key]
    judged: dict[str, Any] = {"cut_short": deadline.cuts} if deadline.cuts else {}
    if state is not None:
        judged["race"] = {"ending": state.ending, "entrants": list(state.keys)}
    if confirmation is not None:
        judged["confirmed"] = confirmation.rows()
        if command.tune.lineup:
            search.time_alone()
            found_beside = search.finals.lineup(best)
            judged["lineup"] = found_beside.to_json()
            console.print(found_beside.told, highlight=False)
        if command.tune.ladder and not command.loop.is_sync:
            found = search.finals.ladder(best)
            judged["ladder"] = save_ladder(command, found, store.trials, search.counting, folder)
            console.print(f"{found.told}", highlight=False)
    told = sentence(rule, best, store.trials, confirmation)
    return _chosen(command, loaded, rule, store, search.counting, best, folder, told, judged), True


def _machine(
    command: TuneCommand, loaded: LoadedPolicy, measure: Measure
) -> tuple[Elsewhere | None, Measure]:
    """Return the machine that latencies are predicted for, if it is not this one, and what gives them."""
    elsewhere = None
    if command.budget.device:
        profile = Profile.load(Path(command.budget.device))
        profile.check(loaded, command.loop.chunking is not None)
        elsewhere, measure = Elsewhere(profile.told, profile.margin, profile.machine), Predicting(profile)
        console.print(profile.told, highlight=False)
        if command.tune.compile:
            command.tune.compile = False
            console.print("left out: torch.compile: a profile has no times of it", style="yellow")
    if command.budget.memory_mb is not None:
        measure = WithinMemory(measure, command.budget.memory_mb)
    return elsewhere, measure


def _why_out(trial: Trial) -> str:
    """Why it can be no plan: for what it takes, for want of a prediction, or for what it raised."""
    if trial.status is Status.DROPPED and trial.stage is Status.TIMED:
        return trial.reason
    return trial.reason if trial.status is Status.FAILED and trial.stage is not Status.COUNTED else ""


def _left_out(store: Store) -> dict[str, str]:
    """What was timed or acted, and can be no plan: its label -> why."""
    return {describe(one.candidate): why for one in store.trials.values() if (why := _why_out(one))}


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
    told_trials = rows(trials, rule)
    if rule.budget.elsewhere is not None:
        told = f"{told}; {rule.budget.elsewhere.told}"
    found["left_out"] = _left_out(store)
    results = circumstances("tune", command, loaded) | {
        "budget": {"told": rule.budget.told, "seconds": rule.budget.seconds, "hz": rule.budget.control_hz},
        "judged_by": "success" if "confirmed" in found else "action error",
        "sentence": told,
        "trials": told_trials,
        "on_front": on_front(trials),
        "importance": importance(told_trials),
        **found,
    }
    write_results(folder, results)
    console.print(told, style="bold", highlight=False)
    counts = Counter(trial.status.value for trial in trials)
    return {
        "report": str(folder / "report.html"),
        "results": str(folder / "results.json"),
        "sentence": told,
        "candidates": dict(counts),
        **found,
    }


def _too_slow(
    command: TuneCommand,
    loaded: LoadedPolicy,
    rule: Rule,
    store: Store,
    folder: Path,
    deadline: Deadline,
) -> dict[str, Any]:
    """Tell that nothing keeps the budget; no plan is written."""
    fastest = rule.fastest(store.trials.values())
    if fastest is None and (left_out := _left_out(store)):
        told = "no plan can be chosen: " + "; ".join(f"{label}: {why}" for label, why in left_out.items())
        return _results(command, loaded, rule, store, folder, told, plan=None)
    if fastest is None:
        raise BadSetting(
            f"nothing was timed within tune.minutes={command.tune.minutes:g}; give more time: the same "
            "command with the same --output_dir goes on"
        )
    latency = Latency.of(fastest).to_json()
    found: dict[str, Any] = {
        "plan": None,
        "fastest": {"label": describe(fastest.candidate), "latency": latency},
    }
    found |= {"cut_short": deadline.cuts} if deadline.cuts else {}
    return _results(command, loaded, rule, store, folder, too_slow(rule, fastest), **found)


def _chosen(
    command: TuneCommand,
    loaded: LoadedPolicy,
    rule: Rule,
    store: Store,
    counting: Counting,
    best: Trial,
    folder: Path,
    told: str,
    judged: Mapping[str, Any],
) -> dict[str, Any]:
    """Save the plan, and tell what it costs."""
    trained = as_trained(store.trials.values())
    plan = made(command, counting, best)
    found = measurements(command, loaded, rule, best, trained)
    file = save(with_measurements(plan, found), loaded.path if command.output_dir is None else folder)
    said = {
        "plan": str(file),
        "winner": {"key": best.key, "label": describe(best.candidate)},
        "measured": found,
        **judged,
    }
    return _results(command, loaded, rule, store, folder, told, **said)


def _identity(command: TuneCommand, loaded: LoadedPolicy) -> dict[str, Any]:
    """What must be the same for an interrupted search to be continued in its folder."""
    return {
        "verb": "tune",
        "weights": loaded.fingerprint.weights,
        "processors": loaded.fingerprint.processors,
        "techniques": command.tune.techniques,
        "calibration": [command.accel.episodes, command.accel.samples],
        "judgement": [command.accel.judged_episodes, command.tune.samples],
        "n_episodes": command.tune.n_episodes,
        "env": vars(command.env),
        "data": asdict(command.data),
        "seed": command.seed,
        "loop": f"{command.loop}",
        "device": digest(read_json(Path(device), "profile")) if (device := command.budget.device) else "",
        "memory_mb": command.budget.memory_mb,
    }
