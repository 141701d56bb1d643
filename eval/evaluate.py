"""`vivace eval`: unaccelerated and accelerated side by side, in a world that does not wait.

Three runs meet the same episodes: the policy as trained (`plain`), under its plan (`accelerated`), and the
honest baseline: as many DDIM or Euler steps as take the accelerated run's time (`fewer_steps`), or, of a
policy that writes tokens, exact Jacobi decoding (`freeze`).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vivace.accel.apply import accelerate
from vivace.accel.hoist import Hoist
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.layer_skip import LayerSkip
from vivace.accel.mlp_prune import MlpPrune
from vivace.accel.plan import AccelerationPlan
from vivace.accel.step_schedule import StepSchedule
from vivace.accel.technique import CalibrationData
from vivace.deploy.loop import Mode
from vivace.eval.action_error import sample_all
from vivace.eval.bench import Built, build, counts, gflop, pareto_row
from vivace.eval.calibration import calibration_section
from vivace.eval.episode import EpisodeResult
from vivace.eval.gather import JUDGEMENT_SEED
from vivace.eval.latencies import measured_latencies
from vivace.eval.latency_model import MeasuredLatency, NoLatency
from vivace.eval.lineup import Entry, lineup_for
from vivace.eval.output import claim, output_folder
from vivace.eval.plans import load, load_plan, observe
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.results import circumstances, write_results
from vivace.eval.settings import EvalCommand
from vivace.eval.summary import comparisons, frequency_score, run_summary, table
from vivace.eval.terminal import console
from vivace.eval.trials import Run, Trials, rollout_settings
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy
from vivace.policies.staged import Execution

PLAIN = Entry("plain", "as trained", "plain")
ACCELERATED = Entry("accelerated", "accelerated", "accelerated")
SHOWN_BECAUSE = "the first of the evaluation, chosen before any was run"
"""How the episode that is filmed and drawn was chosen."""
LADDER = "ladder"
"""Name of the run that chooses among plans."""
RUNS = (PLAIN.name, ACCELERATED.name, "fewer_steps", "freeze")
BASELINES = (
    "hoist",
    "uniform",
    "taylor1",
    "ddim-4",
    "ddim-16",
    "dpmsolver++-4",
    "dpmsolver++-16",
    "ddim-16+bac",
    "tokens",
    "layers",
    "cache",
    "fastv",
    "ddim-2",
    "ddim-5",
    "euler-2",
    "euler-4",
    "rk4-2",
    "freeze",
    "exit-1",
    "exit-2",
    "exit-4",
    "recycling",
    "stand",
)
"""Rows of the line-up that an evaluation times and compares too; `vivace bench` has them all."""


def run(command: EvalCommand) -> tuple[dict[str, Any], bool]:
    """Measure latencies, run every episode under them, write results.json, report.html, trace and video."""
    began = time.monotonic()
    if command.bench.threads:
        torch.set_num_threads(command.bench.threads)
    requirements = read_requirements(command.require, RUNS, ("success",))
    unknown = sorted(set(command.eval.curve_runs) - set(RUNS))
    if unknown:
        raise BadSetting(f"eval.curve_runs names {unknown[0]!r}; the runs: {', '.join(RUNS)}")
    unknown = sorted(set(command.eval.curve_modes) - set(Mode))
    if unknown:
        raise BadSetting(f"eval.curve_modes names {unknown[0]!r}; the modes: {', '.join(Mode)}")
    if len(command.env.tasks) > 1:
        raise BadSetting(f"env.task={command.env.task!r}: eval takes one task; bench takes several")
    loaded = load(command)
    plan = load_plan(command, loaded)
    accelerated = accelerate(loaded.staged, plan)
    rollout_settings(command, NoLatency()).loop_settings(loaded.staged.spec)  # refuses before it measures
    if command.eval.ladder and command.eval.mode == Mode.SYNC:
        raise BadSetting("eval.ladder needs time to choose by; use --eval.mode=async or rtc")
    folder = output_folder("eval", command.output_dir, command.job_name)
    claim(folder, _identity(command, loaded, plan))
    fitted = observe(command, loaded, accelerated)
    data = observe(command, loaded, accelerated, JUDGEMENT_SEED)
    episodes_asked = range(command.seed, command.seed + command.eval.n_episodes)
    check_apart(fitted.seeds | fitted_seeds(plan), data.seeds.union(episodes_asked))
    built = _executions(command, loaded, plan, accelerated, fitted, data)
    executions, entries = built.executions, built.entries
    times = _latencies(command, loaded, plan, executions, data)
    runs = _runs(command, entries, executions, times)
    trials = Trials(command, loaded, folder)
    episodes = {run.name: trials.episodes(run) for run in runs}
    results = _circumstances(command, loaded, plan) | _outcomes(command, trials, runs, episodes, data)
    results["pareto"] = _pareto(entries, executions, times, data, episodes)
    results["calibration"] = calibration_section(accelerated, fitted)
    results["observations"] = {"fitted": counts(fitted), "judged": counts(data)}
    results["left_out"] = built.left_out
    results["wall"] = {"total_s": round(time.monotonic() - began, 1), **trials.stopwatch.summary()}
    write_results(folder, results)
    Console().print(table(results))
    summary = {
        entry["name"]: {
            "latency_ms": round(1e3 * entry["latency"]["p50_s"], 2),
            "success": entry["successes"] / entry["n"],
            "deadline_misses": entry["deadline_misses"],
        }
        for entry in results["runs"]
    }
    report = {"report": str(folder / "report.html"), "results": str(folder / "results.json")}
    return {**report, "runs": summary, "wall": results["wall"]}, are_met(requirements, summary)


def _runs(
    command: EvalCommand,
    entries: Sequence[Entry],
    executions: Mapping[str, Execution],
    times: Mapping[str, list[float]],
) -> list[Run]:
    """Every run of the evaluation; a ladder comes last, the plans on it run alone too."""
    names = command.eval.ladder
    known = {
        entry.name: Run(entry, executions[entry.name], command.latency.for_run(entry.name, times[entry.name]))
        for entry in entries
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadSetting(f"eval.ladder names {unknown[0]!r}; the plans here: {', '.join(known)}")
    runs = [run for name, run in known.items() if name in (*RUNS, *names)]
    if not names:
        return runs
    entry = Entry(LADDER, f"ladder of {', '.join(known[name].entry.label for name in names)}", "ladder")
    ladder = tuple(known[name] for name in names)
    return [*runs, Run(entry, ladder[0].execution, ladder[0].latency, ladder)]


def _outcomes(
    command: EvalCommand,
    trials: Trials,
    runs: list[Run],
    episodes: Mapping[str, list[EpisodeResult]],
    data: CalibrationData,
) -> dict[str, Any]:
    """What came of the runs: summaries, paired comparisons, success-versus-latency curve, a film."""
    hz = command.env.control_hz
    curve = trials.curve(runs)
    seed = command.seed
    summaries = [run_summary(run, episodes[run.name], hz, gflop(run.execution, data.one)) for run in runs]
    latency_s = {entry["name"]: entry["latency"]["p50_s"] for entry in summaries}
    for line in curve.values():
        line["frequency_score"] = frequency_score(line["points"], latency_s[line["run"]], hz)
    return {
        "runs": summaries,
        "comparisons": _comparisons(episodes),
        "curve": curve,
        "shown_seed": seed,
        "shown_because": SHOWN_BECAUSE,
        "video": trials.film([run for run in runs if not run.ladder], seed) if command.eval.video else None,
        "patches": trials.film_patches(runs[1], seed) if command.eval.video else None,
    }


def _comparisons(episodes: Mapping[str, list[EpisodeResult]]) -> list[dict[str, Any]]:
    """The accelerated run against every other one, and a ladder against every plan that runs alone."""
    alone = {name: found for name, found in episodes.items() if name != LADDER}
    pairs = comparisons(alone, ACCELERATED.name)
    return pairs + comparisons(episodes, LADDER) if LADDER in episodes else pairs


def _identity(command: EvalCommand, loaded: LoadedPolicy, plan: AccelerationPlan) -> dict[str, Any]:
    """What must be the same for an interrupted evaluation to be continued in its folder."""
    return {
        "verb": "eval",
        "weights": loaded.fingerprint.weights,
        "plan": plan.to_json()["techniques"],
        "env": vars(command.env),
        "seed": command.seed,
        "latency": f"{command.latency}",
        "mode": command.eval.mode,
        "request_at": command.eval.request_at,
        "n_action_steps": command.policy.n_action_steps,
        "ladder": command.eval.ladder,
        "rtc": f"{command.rtc}" if Mode.RTC in (command.eval.mode, *command.eval.curve_modes) else "",
    }


def _circumstances(command: EvalCommand, loaded: LoadedPolicy, plan: AccelerationPlan) -> dict[str, Any]:
    """What was evaluated, where, and by which command."""
    results = circumstances("eval", command, loaded)
    results["environment"] |= {"control_hz": command.env.control_hz, "mode": command.eval.mode}
    layers = next((t for t in plan.techniques if isinstance(t, LayerSkip)), None)
    return results | {
        "plan": [entry for entry in plan.to_json()["techniques"] if entry["kind"] != MlpPrune.kind],
        "layers": None if layers is None else {"importance": layers.importance, "kept": layers.kept},
    }


def _executions(
    command: EvalCommand,
    loaded: LoadedPolicy,
    plan: AccelerationPlan,
    accelerated: Execution,
    fitted: CalibrationData,
    data: CalibrationData,
) -> Built:
    """Every way of running the policy that appears in the report; baselines are fitted to `fitted`."""
    plain = Execution.of(loaded.staged)
    executions = {PLAIN.name: plain, ACCELERATED.name: accelerated}
    entries = [PLAIN, ACCELERATED]
    if not (loaded.staged.blocks or plain.writes_tokens):
        return Built(tuple(entries), executions, {})
    if not plain.writes_tokens:
        entry, executions["fewer_steps"] = _fewer_steps_run(command, loaded, plan, accelerated, data)
        entries.append(entry)
    others = [
        e for e in lineup_for(loaded.staged, command.accel) if e.name in (*BASELINES, *command.eval.ladder)
    ]
    others = [e for e in others if command.eval.lineup or e.name in (*RUNS, *command.eval.ladder)]
    return Built(tuple(entries), executions, {}).joined(build(loaded, others, fitted))


def _fewer_steps_run(
    command: EvalCommand,
    loaded: LoadedPolicy,
    plan: AccelerationPlan,
    accelerated: Execution,
    data: CalibrationData,
) -> tuple[Entry, Execution]:
    """Return the honest baseline of a policy that denoises."""
    exact = tuple(technique for technique in plan.techniques if technique.kind == Hoist.kind)
    hoisted = accelerate(loaded.staged, AccelerationPlan(loaded.fingerprint, exact))
    wanted = _latencies(command, loaded, plan, {PLAIN.name: hoisted, ACCELERATED.name: accelerated}, data)
    fewer = _fewer_steps(hoisted, wanted)
    label = f"{fewer.sampler.upper()} {fewer.n_steps} steps, same latency"
    execution = accelerate(loaded.staged, AccelerationPlan(loaded.fingerprint, (fewer, *exact)))
    return Entry("fewer_steps", label, "fewer_steps"), execution


def _fewer_steps(hoisted: Execution, times: Mapping[str, list[float]]) -> StepSchedule:
    """As many steps of the simplest sampler as take the accelerated run's time.

    Args:
        hoisted: the plain loop, hoisted if the plan is, so that caching competes with steps alone.
        times: latencies [s] of `hoisted` ("plain") and of the accelerated run.
    """
    n_steps = len(hoisted.sampler)
    wanted = round(n_steps * float(np.median(times[ACCELERATED.name]) / np.median(times[PLAIN.name])))
    is_flow = hoisted.sampler.name in ("euler", "rk4")
    return StepSchedule(sampler="euler" if is_flow else "ddim", n_steps=max(1, min(n_steps, wanted)))


def _latencies(
    command: EvalCommand,
    loaded: LoadedPolicy,
    plan: AccelerationPlan,
    executions: Mapping[str, Execution],
    data: CalibrationData,
) -> dict[str, list[float]]:
    identity = {
        "weights": loaded.fingerprint.weights,
        "plan": plan.to_json()["techniques"],
        "repeats": command.bench.repeats,
    }
    refresh = isinstance(command.latency, MeasuredLatency) and command.latency.refresh
    return measured_latencies(executions, data, identity, command.bench.repeats, refresh)


def _pareto(
    entries: Sequence[Entry],
    executions: Mapping[str, Execution],
    times: dict[str, list[float]],
    data: CalibrationData,
    episodes: Mapping[str, Sequence[EpisodeResult]],
) -> list[dict[str, Any]]:
    """Latency, action error and, where episodes were run, success under that latency."""
    with console.status("comparing actions"):
        reference = sample_all(executions[PLAIN.name], data)
        rows = [pareto_row(entry, executions[entry.name], times, reference, data) for entry in entries]
    for row in rows:
        if row["name"] in episodes:
            found = episodes[row["name"]]
            row |= {"successes": sum(e.success for e in found), "n": len(found)}
    return rows
