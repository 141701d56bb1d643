"""`vivace eval`: unaccelerated and accelerated side by side, in a world that does not wait.

Without a plan it evaluates any policy as trained, an opaque one too.

Several runs meet the same episodes: the policy as trained (`plain`), under its plan (`accelerated`), and the
honest baselines: as many DDIM or Euler steps as take no longer than the accelerated run (`fewer_steps`), of
diffusion as many DPM-Solver++ ones too (`fewer_steps_dpm`), or, of a policy that writes tokens, exact Jacobi
decoding (`freeze`).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vivace.accel.apply import accelerate
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.variant import Variant
from vivace.deploy.loop.budget import read_ladder
from vivace.deploy.loop.settings import Mode
from vivace.eval.measure.action_error import sample_all
from vivace.eval.measure.fewer_steps import Rival, find_rival, latency_ratio, samplers
from vivace.eval.measure.latencies import Measured, Notes, measured_latencies
from vivace.eval.measure.pareto import pareto_row
from vivace.eval.measure.threads import choose_threads, restored_threads
from vivace.eval.measure.timing import Rounds, shared
from vivace.eval.measure.trials import Trial, Trials, rollout_settings
from vivace.eval.measure.variants import ACCELERATED, PLAIN, variants_of
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.options import CommonOptions
from vivace.eval.output import claim, output_folder
from vivace.eval.report.outcomes import LADDER, with_episodes
from vivace.eval.report.results import circumstances, write_results
from vivace.eval.report.schedule_section import calibration_section
from vivace.eval.report.summary import table
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.scale.shard import share_folder, write_share
from vivace.eval.scale.workforce import Workforce
from vivace.eval.simulation.latency_model import LatencyModel, MeasuredLatency, NoLatency
from vivace.eval.subject import check_world, find_plan, load, loading, session
from vivace.eval.terminal import console
from vivace.eval.verbs.bench import BenchOptions, Built, build, counts
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.execution import Decoding, Execution, as_trained
from vivace.policies.load import LoadedPolicy


@dataclass(kw_only=True)
class EvalOptions:
    """How to evaluate."""

    n_episodes: int = 20
    """Episodes that every run meets, the same for all."""
    batch_size: int = 10
    """Episodes stepped together, their inference batched; what a worker takes at a time."""
    curve: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0])
    """Constant latencies [s] of the success-versus-latency curve; empty leaves it out."""
    curve_runs: list[str] = field(default_factory=list)
    """Runs that have a curve: plain, accelerated, fewer_steps, fewer_steps_dpm; when empty the accelerated
    one, or plain where there is no plan."""
    curve_modes: list[str] = field(default_factory=list)
    """Modes in which they have one, such as [sync,async,rtc]; the evaluation's own when empty."""
    timed_chunks: int = 100
    """Chunks of every run with episodes that are timed, as many as a p99 takes; other rows of the Pareto plot
    are timed --bench.repeats times."""
    timed_s: float = 20.0
    """Longest time [s] a run is timed for; a slow one has fewer chunks then, and fewer percentiles."""
    lineup: bool = True
    """Time every baseline and compare its actions (the Pareto plot)."""
    video: bool = True
    """Film one episode under every run, side by side."""


@dataclass(kw_only=True)
class RowTiming(BenchOptions):
    """How the rows beside the evaluated runs are timed: briefly."""

    # a class of its own, for draccus reads defaults off classes
    repeats: int = 5
    """Timed rounds; every plan runs once a round."""
    compile: bool = False
    """Time torch.compile too (takes a minute or more to compile)."""


@dataclass(kw_only=True)
class EvalCommand(CommonOptions):
    """Evaluate a policy, as trained and under its plan if it has one, in a world that does not wait.

    Example: vivace eval --policy.path=zoo/reach --env.task=reach-moving --eval.n_episodes=50
    """

    eval: EvalOptions = field(default_factory=EvalOptions)
    bench: RowTiming = field(default_factory=RowTiming)
    latency: LatencyModel = field(default_factory=MeasuredLatency)
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    RUNS_LOOP = True
    RENAMED = CommonOptions.RENAMED | {
        "eval.mode": "loop.mode",
        "eval.request_at": "loop.request_at",
        "eval.ladder": "loop.ladder",
        "rtc.method": "loop.rtc.method",
        "rtc.jacobian": "loop.rtc.jacobian",
        "rtc.schedule": "loop.rtc.schedule",
        "rtc.execution_horizon": "loop.rtc.execution_horizon",
        "rtc.max_guidance": "loop.rtc.max_guidance_weight",
    }


SHOWN_BECAUSE = "the first of the evaluation, chosen before any was run"
"""How the episode that is filmed and drawn was chosen."""
RUNS = (PLAIN.name, ACCELERATED.name, "fewer_steps", "fewer_steps_dpm", "freeze")
"""Rows that run episodes: as trained, under the plan, and the honest baselines as far as there are such."""


@restored_threads()
def run(command: EvalCommand) -> tuple[dict[str, Any], bool]:
    """Measure latencies, run every episode under them, write results.json, report.html, trace and video."""
    began = time.monotonic()
    requirements = read_requirements(command.require, RUNS, ("success",))
    _check(command)
    loaded = load(command)
    _check_task(command)
    plan = find_plan(command, loaded)
    command.loop = command.loop.settled(None if plan is None else plan.execution.mode)  # of all rows
    both = _both(command, loaded, plan)
    ours, mine = list(both.items())[-1]
    rollout_settings(command, NoLatency())  # raises before anything is measured
    folder = output_folder("eval", command.output_dir, command.job_name)
    notes = _notes(command, folder)
    if command.scale.share:
        folder = share_folder(folder, command.scale.share)
    identity = _identity(command, loaded, plan)
    claim(folder, identity)
    threads = choose_threads({ours: session(command, loaded, mine)}, command.bench.threads, notes)
    fitted = observe(command, loaded, mine)
    data = observe(command, loaded, mine, JUDGEMENT_SEED)
    episodes_asked = range(command.seed, command.seed + command.eval.n_episodes)
    seeds = fitted.seeds if plan is None else fitted.seeds | fitted_seeds(plan)
    check_apart(seeds, data.seeds.union(episodes_asked))
    built = _executions(command, loaded, both, fitted)
    rivals, skipped = _rivals(command, loaded, plan, mine, fitted, data, notes)
    executions = built.executions | {rival.name: rival.execution for rival in rivals}
    measured = _latencies(command, loaded, executions, data, notes)
    ratios = {rival.name: latency_ratio(measured, rival.name, ACCELERATED.name) for rival in rivals}
    told = [rival.labelled(ratios[rival.name]) for rival in rivals]
    variants = [*built.variants[: len(both)], *told, *built.variants[len(both) :]]
    runs = _runs(command, variants, executions, measured)
    trials = Trials(command, loaded, folder)
    results = _circumstances(command, loaded, plan) | {
        "runs": [run.told(data) for run in runs],
        "curve": trials.curve(runs),
        "threads": threads | {"episodes": command.scale.threads_of_episodes(threads["used"])},
        "scale": vars(command.scale),
        "baselines": _baselines(rivals, ratios),
        "left_out": built.left_out | skipped,
        "pareto": _pareto(variants, executions, measured, data),
        "calibration": calibration_section(mine, fitted),
        "observations": {"fitted": counts(fitted), "judged": counts(data)},
        "shown_seed": command.seed,
        "shown_because": SHOWN_BECAUSE,
    }
    jobs = trials.jobs(runs)
    with Workforce(command.scale, loading(command)) as workforce:
        episodes = workforce.run(jobs, folder / "episodes")
    results |= _films(command, trials, runs, runs[-1 if plan is None else 1])
    results["wall"] = {"total_s": round(time.monotonic() - began, 1), **workforce.stopwatch.summary()}
    if command.scale.share:
        results["ours"] = ours
        return write_share(folder, command.scale.share, identity, jobs, results, episodes), True
    results = with_episodes(results, episodes, ours)
    write_results(folder, results)
    Console().print(table(results))
    summary = _summary(results)
    report = {"report": str(folder / "report.html"), "results": str(folder / "results.json")}
    return {**report, "runs": summary, "wall": results["wall"]}, are_met(requirements, summary)


def _summary(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the last line says of every run, by its name."""
    return {
        entry["name"]: {
            "latency_ms": round(1e3 * entry["latency"]["p50_s"], 2),
            "success": entry["successes"] / entry["n"],
            "deadline_misses": entry["deadline_misses"],
            **({"score": entry["score"]["mean"]} if entry["score"] else {}),
            "stood_still_s": round(entry["stood_still_s"], 2),
        }
        for entry in results["runs"]
    }


def _baselines(rivals: Sequence[Rival], ratios: Mapping[str, float]) -> list[dict[str, Any]]:
    """The policy with fewer steps and no plan, as results.json tells it."""
    return [
        {"name": r.name, "sampler": r.sampler, "n_steps": r.n_steps, "latency_ratio": ratios[r.name]}
        for r in rivals
    ]


def _films(command: EvalCommand, trials: Trials, runs: Sequence[Trial], ours: Trial) -> dict[str, Any]:
    """Film an episode of every run, and the patches of ours; of several shares the first does."""
    if not command.eval.video or (command.scale.share is not None and not command.scale.share.is_first):
        return {"video": None, "patches": None}
    return {
        "video": trials.film([run for run in runs if not run.ladder], command.seed),
        "patches": trials.film_patches(ours, command.seed),
    }


def _both(command: EvalCommand, loaded: LoadedPolicy, plan: AccelerationPlan | None) -> dict[str, Execution]:
    """The policy as trained and, if there is a plan, under it; the last one is what it is all about."""
    found = {PLAIN.name: as_trained(loaded.staged)}
    if plan is None:
        read_requirements(command.require, list(found), ("success",))
    else:
        found[ACCELERATED.name] = accelerate(loaded.staged, plan)
    return found


def _check(command: EvalCommand) -> None:
    """Raise `BadSetting` for what no policy could be evaluated by."""
    command.scale.check(command)
    unknown = sorted(set(command.eval.curve_runs) - set(RUNS))
    if unknown:
        raise BadSetting(f"eval.curve_runs names {unknown[0]!r}; the runs: {', '.join(RUNS)}")
    unknown = sorted(set(command.eval.curve_modes) - set(Mode))
    if unknown:
        raise BadSetting(f"eval.curve_modes names {unknown[0]!r}; the modes: {', '.join(Mode)}")


def _check_task(command: EvalCommand) -> None:
    """Raise `BadSetting` unless the world is known, and one task of it is asked for."""
    check_world(command)
    if len(command.env.tasks) > 1:
        raise BadSetting(f"env.task={command.env.task!r}: eval takes one task; bench takes several")


def _runs(
    command: EvalCommand,
    variants: Sequence[Variant],
    executions: Mapping[str, Execution],
    measured: Measured,
) -> list[Trial]:
    """Every run of the evaluation; a ladder comes last, the plans on it run alone too."""
    loads = read_ladder(command.loop.ladder)

    def latency(name: str) -> LatencyModel:
        return command.latency.for_run(name, measured.times_s[name], measured.first_s.get(name, ()))

    known = {one.name: Trial(one, executions[one.name], latency(one.name)) for one in variants}
    unknown = [name for name in loads if name not in known]
    if unknown:
        raise BadSetting(f"loop.ladder names {unknown[0]!r}; the plans here: {', '.join(known)}")
    runs = [run for name, run in known.items() if name in _episodic(command)]
    if not loads:
        return runs
    label = f"ladder of {', '.join(known[name].variant.label for name in loads)}"
    ladder = tuple(replace(known[name], from_load=load) for name, load in loads.items())
    return [*runs, Trial(Variant(LADDER, label), ladder[0].execution, ladder[0].latency, ladder)]


def _identity(command: EvalCommand, loaded: LoadedPolicy, plan: AccelerationPlan | None) -> dict[str, Any]:
    """What must be the same for an interrupted evaluation to be continued in its folder."""
    return {
        "verb": "eval",
        "weights": loaded.fingerprint.weights,
        "processors": loaded.fingerprint.processors,
        "plan": None if plan is None else plan.identity,
        "env": vars(command.env),
        "data": asdict(command.data),
        "seed": command.seed,
        "latency": f"{command.latency}",
        "mode": command.loop.mode,
        "request_at": command.loop.request_at,
        "n_action_steps": command.loop.n_action_steps,
        "ladder": list(command.loop.ladder),
        "rtc": f"{command.loop.rtc}" if Mode.RTC in (command.loop.mode, *command.eval.curve_modes) else "",
    }


def _circumstances(
    command: EvalCommand, loaded: LoadedPolicy, plan: AccelerationPlan | None
) -> dict[str, Any]:
    """What was evaluated, where, and by which command."""
    results = circumstances("eval", command, loaded)
    results["environment"]["mode"] = command.loop.mode
    plan = plan or AccelerationPlan(loaded.fingerprint)
    for technique in plan.techniques:
        results |= technique.pictured()
    return results | {"plan": plan.told()}


def _executions(
    command: EvalCommand, loaded: LoadedPolicy, both: Mapping[str, Execution], fitted: CalibrationData
) -> Built:
    """Plain and, with a plan, accelerated and short rows of the table, fitted to `fitted`."""
    built = Built(tuple(one for one in (PLAIN, ACCELERATED) if one.name in both), dict(both), {})
    if len(both) == 1 or both[PLAIN.name].is_opaque:
        return built
    runs, ladder = _episodic(command), read_ladder(command.loop.ladder)
    others = [
        one
        for one in variants_of(loaded.staged, command.accel.chosen())
        if one not in built.variants and (one.is_short or one.name in ladder)
    ]
    others = [one for one in others if command.eval.lineup or one.name in runs]
    return built.joined(build(loaded, others, fitted, command.loop.chunking))


def _rivals(
    command: EvalCommand,
    loaded: LoadedPolicy,
    plan: AccelerationPlan | None,
    accelerated: Execution,
    fitted: CalibrationData,
    data: CalibrationData,
    notes: Notes,
) -> tuple[list[Rival], dict[str, str]]:
    """The honest baselines of a policy that denoises, fitted to `fitted`; name -> why one is not there."""
    plain = as_trained(loaded.staged)
    match plain:
        case Decoding():
            return [], {}
    if plan is None or plain.is_opaque:
        return [], {}

    def ratio(execution: Execution, repeats: int) -> float:
        runs = {
            name: session(command, loaded, found)
            for name, found in (("fewer", execution), (ACCELERATED.name, accelerated))
        }
        measured = measured_latencies(runs, data, Rounds(repeats=repeats), notes)
        return latency_ratio(measured, "fewer", ACCELERATED.name)

    rivals, skipped = [], {}
    for name, sampler in samplers(plain).items():
        try:
            rivals.append(find_rival(name, sampler, loaded, plan, fitted, ratio, command.bench.repeats))
        except VivaceError as error:
            skipped[name] = str(error)
            console.print(f"no row {name}: {error}", style="yellow", highlight=False)
    return rivals, skipped


def _latencies(
    command: EvalCommand,
    loaded: LoadedPolicy,
    executions: Mapping[str, Execution],
    data: CalibrationData,
    notes: Notes,
) -> Measured:
    """Time every run, those whose p99 is told as often as that takes and their time allows."""
    sessions = {name: session(command, loaded, execution) for name, execution in executions.items()}
    rounds = Rounds(
        repeats=command.bench.repeats,
        more={name: command.eval.timed_chunks for name in executions if name in _episodic(command)},
        limit_s=command.eval.timed_s,
    )
    return measured_latencies(sessions, data, rounds, notes)


def _episodic(command: EvalCommand) -> tuple[str, ...]:
    """Names of the rows that run episodes, as far as there are such."""
    return (*RUNS, *read_ladder(command.loop.ladder))


def _notes(command: EvalCommand, folder: Path) -> Notes:
    """Where latencies are kept: of shares beside their results, where the share of number 0 measures them."""
    known, share = command.latency.measured, command.scale.share
    refresh = known is not None and known.refresh
    if share is None:
        return Notes(refresh=refresh)
    return Notes(folder / "latencies", refresh and not share.number, True, bool(share.number))


def _pareto(
    variants: Sequence[Variant],
    executions: Mapping[str, Execution],
    measured: Measured,
    data: CalibrationData,
) -> list[dict[str, Any]]:
    """Latency and action error; where episodes are run, success under that latency is added to it."""
    plain_s = measured.times_s[PLAIN.name]
    with console.status("comparing actions"):
        reference = sample_all(executions[PLAIN.name], data)
        rows = []
        for variant in variants:
            before_s, times_s = shared(plain_s, measured.times_s[variant.name])
            times = {PLAIN.name: before_s, variant.name: times_s}
            rows.append(pareto_row(variant, executions[variant.name], times, reference, data))
    for row in rows:
        row["stages_s"] = measured.stages_s[row["name"]]
    return rows
