"""`vivace eval`: unaccelerated and accelerated side by side, in a world that does not wait.

Three runs meet the same episodes: the policy as trained (`plain`), under its plan (`accelerated`), and the
honest baseline, as many DDIM or Euler steps as take the accelerated run's time (`fewer_steps`).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vivace.accel.apply import accelerate
from vivace.accel.flops import count_flops
from vivace.accel.hoist import Hoist
from vivace.accel.plan import AccelerationPlan
from vivace.accel.step_schedule import StepSchedule
from vivace.accel.technique import CalibrationData
from vivace.envs.registry import make
from vivace.eval.bench import build, describe, pareto_row
from vivace.eval.calibration import calibration_section
from vivace.eval.episode import EpisodeResult, append_result, load_results
from vivace.eval.gather import calibration_data
from vivace.eval.latencies import measured_latencies
from vivace.eval.latency_model import ConstantLatency, LatencyModel, MeasuredLatency, NoLatency
from vivace.eval.lineup import Entry, lineup
from vivace.eval.machine import command as command_line
from vivace.eval.machine import machine, versions
from vivace.eval.output import claim, output_folder, read_json, write_json
from vivace.eval.plans import load, load_plan
from vivace.eval.report import write_report
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.rollout import RolloutSettings, rollout
from vivace.eval.settings import EvalCommand, ReportCommand
from vivace.eval.statistics import curve_area, paired_difference, percentiles, wilson_interval
from vivace.eval.trace import write_trace
from vivace.eval.video import caption, side_by_side, write_video
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.staged import Execution, sample

console = Console(stderr=True)

PLAIN = Entry("plain", "as trained", "plain")
ACCELERATED = Entry("accelerated", "accelerated", "accelerated")
RUNS = (PLAIN.name, ACCELERATED.name, "fewer_steps")


@dataclass(frozen=True)
class Run:
    """One way of running the policy, and how long its chunks take."""

    entry: Entry
    execution: Execution
    latency: LatencyModel


def run(command: EvalCommand) -> tuple[dict[str, Any], bool]:
    """Measure latencies, run every episode under them, write results.json, report.html, trace and video."""
    began = time.monotonic()
    if command.bench.threads:
        torch.set_num_threads(command.bench.threads)
    requirements = read_requirements(command.require, RUNS, ("success",))
    unknown = sorted(set(command.eval.curve_runs) - set(RUNS))
    if unknown:
        raise BadSetting(f"eval.curve_runs names {unknown[0]!r}; the runs: {', '.join(RUNS)}")
    loaded = load(command)
    plan = load_plan(command, loaded)
    accelerated = accelerate(loaded.staged, plan)
    _rollout_settings(command, NoLatency()).loop_settings(
        loaded.staged.spec
    )  # refuses before anything is written
    folder = output_folder("eval", command.output_dir, command.job_name)
    claim(folder, _identity(command, loaded, plan))
    with console.status("collecting calibration observations (frozen world, accelerated policy)"):
        data = calibration_data(
            Session(loaded, accelerated),
            lambda: _make_env(command),
            command.accel.episodes,
            command.accel.samples,
            command.seed,
        )
    executions, entries = _executions(command, loaded, plan, accelerated, data)
    times = _latencies(command, loaded, plan, executions, data)
    runs = [
        Run(entry, executions[entry.name], latency_of(command.latency, entry.name, times))
        for entry in entries
        if entry.name in RUNS
    ]
    stopwatch = Stopwatch()
    episodes = {run.entry.name: _episodes(command, loaded, run, folder, stopwatch) for run in runs}
    curve = _curve(command, loaded, runs, folder, stopwatch)
    results = {
        "format": 1,
        "kind": "eval",
        "command": command_line(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(command.policy.device),
        "seed": command.seed,
        "policy": describe(command, loaded),
        "environment": {
            "type": command.env.type,
            "task": command.env.task,
            "control_hz": command.env.control_hz,
            "mode": command.eval.mode,
        },
        "plan": plan.to_json()["techniques"],
        "runs": [
            _summary(run, episodes[run.entry.name], loaded, data, command.env.control_hz) for run in runs
        ],
        "comparisons": _comparisons(episodes),
        "curve": curve,
        "pareto": _pareto(entries, executions, times, data, episodes),
        "calibration": calibration_section(accelerated, data),
    }
    seed = _telling_seed(episodes)
    results["shown_seed"] = seed
    shown = {name: next(e.to_json() for e in found if e.seed == seed) for name, found in episodes.items()}
    write_trace(folder / "trace.json", shown, command.env.control_hz)
    if command.eval.video:
        results["video"] = _film(command, loaded, runs, seed, folder)
    results["wall"] = {"total_s": round(time.monotonic() - began, 1), **stopwatch.summary()}
    write_json(folder / "results.json", results)
    write_report(folder, results)
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


def run_report(command: ReportCommand) -> tuple[dict[str, Any], bool]:
    """Write report.html and trace.json again from a results.json."""
    path = Path(command.results)
    path = path / "results.json" if path.is_dir() else path
    results = read_json(path, "results.json of vivace eval or bench")
    written = write_report(path.parent, results)
    if results["kind"] == "eval":
        seed = results["shown_seed"]
        shown = {r["name"]: next(e for e in r["episodes"] if e["seed"] == seed) for r in results["runs"]}
        write_trace(path.parent / "trace.json", shown, results["environment"]["control_hz"])
    return {"report": str(written)}, True


def latency_of(model: LatencyModel, name: str, times: Mapping[str, list[float]]) -> LatencyModel:
    """Return the latency model of one run: its own measurements, its own trace, or the same for all."""
    if isinstance(model, MeasuredLatency) and not model.samples_s:
        return replace(model, samples_s=tuple(times[name]))
    return model.for_run(name)


class Stopwatch:
    """Tells the time the policy took from the time the world took."""

    def __init__(self) -> None:
        self.inference_s = self.total_s = self.simulated_s = 0.0

    def timed(self, predict: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """Wrap `Session.predict`."""

        def run(*args: Any) -> np.ndarray:
            began = time.perf_counter()
            actions = predict(*args)
            self.inference_s += time.perf_counter() - began
            return actions

        return run

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Time a whole rollout."""
        began = time.perf_counter()
        yield
        self.total_s += time.perf_counter() - began

    def summary(self) -> dict[str, float]:
        """Wall times [s], simulated time [s] and how much faster than real time the world ran."""
        world_s = self.total_s - self.inference_s
        return {
            "inference_s": round(self.inference_s, 2),
            "world_s": round(world_s, 2),
            "simulated_s": round(self.simulated_s, 2),
            "faster_than_real_time": round(self.simulated_s / world_s, 1) if world_s > 0 else 0.0,
        }


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
        "n_action_steps": command.policy.n_action_steps,
    }


def _make_env(command: EvalCommand) -> Any:
    return make(command.env.type, command.env.task)


def _executions(
    command: EvalCommand,
    loaded: LoadedPolicy,
    plan: AccelerationPlan,
    accelerated: Execution,
    data: CalibrationData,
) -> tuple[dict[str, Execution], list[Entry]]:
    """Every way of running the policy that appears in the report, with its entry."""
    plain = Execution.of(loaded.staged)
    executions = {PLAIN.name: plain, ACCELERATED.name: accelerated}
    entries = [PLAIN, ACCELERATED]
    if not loaded.staged.blocks:
        return executions, entries
    exact = tuple(technique for technique in plan.techniques if technique.kind == Hoist.kind)
    hoisted = accelerate(loaded.staged, AccelerationPlan(loaded.fingerprint, exact))
    wanted = _latencies(command, loaded, plan, {PLAIN.name: hoisted, ACCELERATED.name: accelerated}, data)
    fewer = _fewer_steps(hoisted, wanted)
    label = f"{fewer.sampler.upper()} {fewer.n_steps} steps, same latency"
    entries.append(Entry("fewer_steps", label, "fewer_steps"))
    executions["fewer_steps"] = accelerate(
        loaded.staged, AccelerationPlan(loaded.fingerprint, (fewer, *exact))
    )
    if command.eval.lineup:
        others = [e for e in lineup(command.accel.updates, command.accel.bubbling) if not e.is_compiled]
        others = [entry for entry in others if entry.name not in executions]
        built = build(loaded, others, data)
        executions |= built
        entries += [entry for entry in others if entry.name in built]
    return executions, entries


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
    one = {key: value[:1] for key, value in data.batch.items()}
    identity = {
        "weights": loaded.fingerprint.weights,
        "plan": plan.to_json()["techniques"],
        "repeats": command.bench.repeats,
    }
    refresh = isinstance(command.latency, MeasuredLatency) and command.latency.refresh
    with progress() as bars:
        bar = bars.add_task("measuring latencies, interleaved", total=command.bench.repeats + 1)
        return measured_latencies(
            executions,
            one,
            identity,
            command.bench.repeats,
            refresh,
            lambda done: bars.update(bar, completed=done),
        )


def _rollout_settings(command: EvalCommand, latency: LatencyModel) -> RolloutSettings:
    return RolloutSettings(
        n_episodes=command.eval.n_episodes,
        seed=command.seed,
        batch_size=command.eval.batch_size,
        control_hz=command.env.control_hz,
        mode=command.eval.mode,  # type: ignore[arg-type]  # RolloutSettings says which there are
        n_action_steps=command.policy.n_action_steps,
        latency=latency,
        max_steps=command.env.max_steps,
    )


def _episodes(
    command: EvalCommand,
    loaded: LoadedPolicy,
    run: Run,
    folder: Path,
    stopwatch: Stopwatch,
    latency: LatencyModel | None = None,
) -> list[EpisodeResult]:
    """Run the episodes of one run; those an interrupted evaluation has stored are not run again."""
    settings = _rollout_settings(command, latency or run.latency)
    name = run.entry.name if latency is None else f"{run.entry.name}_{settings.latency.latency_s(0, 0):g}s"
    store = folder / "episodes" / f"{name}.jsonl"
    store.parent.mkdir(exist_ok=True)
    done = load_results(store)
    session = Session(loaded, run.execution)
    with progress() as bars, stopwatch.rollout():
        bar = bars.add_task(name.replace("_", " "), total=settings.n_episodes, completed=len(done))

        def on_episode(result: EpisodeResult) -> None:
            append_result(store, result)
            stopwatch.simulated_s += result.steps / command.env.control_hz
            bars.advance(bar)

        return rollout(
            lambda: _make_env(command),
            stopwatch.timed(session.predict),
            session.spec,
            settings,
            on_episode,
            done,
        )


def _curve(
    command: EvalCommand, loaded: LoadedPolicy, runs: list[Run], folder: Path, stopwatch: Stopwatch
) -> dict[str, Any]:
    """Success of the chosen runs at constant latencies, and the area under each curve."""
    found: dict[str, Any] = {}
    for run in runs:
        if run.entry.name not in command.eval.curve_runs or not command.eval.curve:
            continue
        points = []
        for latency_s in sorted(set(command.eval.curve)):
            constant = ConstantLatency(seconds=latency_s)
            episodes = _episodes(command, loaded, run, folder, stopwatch, constant)
            successes = sum(e.success for e in episodes)
            points.append({"latency_s": latency_s, "successes": successes, "n": len(episodes)})
        rates = [p["successes"] / p["n"] for p in points]
        area = curve_area([p["latency_s"] for p in points], rates)
        found[run.entry.name] = {"label": run.entry.label, "points": points, "area": area}
    return found


def _summary(
    run: Run, episodes: list[EpisodeResult], loaded: LoadedPolicy, data: CalibrationData, control_hz: float
) -> dict[str, Any]:
    successes, steps = sum(e.success for e in episodes), sum(e.steps for e in episodes)
    times = [e.time_to_success_s for e in episodes if e.time_to_success_s is not None]
    one = {key: value[:1] for key, value in data.batch.items()}
    return {
        "name": run.entry.name,
        "label": run.entry.label,
        "latency": percentiles([latency for e in episodes for latency in e.latencies_s]),
        "latencies_s": [latency for e in episodes for latency in e.latencies_s],
        "gflop": count_flops(run.execution, one).total / 1e9 if loaded.staged.blocks else None,
        "successes": successes,
        "n": len(episodes),
        "interval": wilson_interval(successes, len(episodes)),
        "time_to_success_s": float(np.median(times)) if times else None,
        "ticks": {key: sum(e.ticks[key] for e in episodes) for key in episodes[0].ticks},
        "deadline_misses": sum(e.deadline_misses for e in episodes),
        "chunks": sum(len(e.latencies_s) for e in episodes),
        "effective_hz": control_hz * sum(e.fresh_share * e.steps for e in episodes) / steps,
        "episodes": [e.to_json() for e in episodes],
    }


def _comparisons(episodes: Mapping[str, list[EpisodeResult]]) -> list[dict[str, Any]]:
    """Accelerated against each other run on the same seeds."""
    ours = {e.seed: e.success for e in episodes[ACCELERATED.name]}
    found = []
    for name, others in episodes.items():
        if name != ACCELERATED.name:
            pair = paired_difference({e.seed: e.success for e in others}, ours)
            found.append({"first": name, "second": ACCELERATED.name, **vars(pair)})
    return found


def _pareto(
    entries: list[Entry],
    executions: Mapping[str, Execution],
    times: dict[str, list[float]],
    data: CalibrationData,
    episodes: Mapping[str, list[EpisodeResult]],
) -> list[dict[str, Any]]:
    """Latency, action error and, where episodes were run, success under that latency."""
    with console.status("comparing actions"):
        reference = sample(executions[PLAIN.name], data.batch, EpisodeNoise(data.noise_keys))
        rows = [pareto_row(entry, executions[entry.name], times, reference, data) for entry in entries]
    for row in rows:
        if row["name"] in episodes:
            found = episodes[row["name"]]
            row |= {"successes": sum(e.success for e in found), "n": len(found)}
    return rows


def _telling_seed(episodes: Mapping[str, list[EpisodeResult]]) -> int:
    """First seed that the accelerated run solves and the plain one does not, else the first of all."""
    pairs = zip(episodes[PLAIN.name], episodes[ACCELERATED.name], strict=True)
    telling = [a.seed for p, a in pairs if a.success and not p.success]
    return telling[0] if telling else episodes[PLAIN.name][0].seed


def _film(command: EvalCommand, loaded: LoadedPolicy, runs: list[Run], seed: int, folder: Path) -> str | None:
    """Run one episode of every run again with a camera; None, and a line saying so, without a renderer."""
    films: dict[str, list[np.ndarray]] = {}
    control_hz = command.env.control_hz
    try:
        for run in runs:
            frames: list[np.ndarray] = []

            def on_tick(seed: int, env: Any, record: Any, label=run.entry.label, frames=frames) -> None:
                frames.append(caption(env.render(), label, record.source.value, record.tick, control_hz))

            settings = replace(_rollout_settings(command, run.latency), n_episodes=1, seed=seed)
            session = Session(loaded, run.execution)
            with console.status(f"filming {run.entry.label}"):
                rollout(lambda: _make_env(command), session.predict, session.spec, settings, on_tick=on_tick)
            films[run.entry.name] = frames
    except (ImportError, RuntimeError, AttributeError) as error:
        console.print(f"no video: rendering failed ({error}); vivace doctor says more", style="yellow")
        return None
    write_video(folder / "videos" / "side_by_side.mp4", side_by_side(films), control_hz)
    return "videos/side_by_side.mp4"


def table(results: dict[str, Any]) -> Table:
    """The runs as a table a person reads."""
    environment = results["environment"]
    title = f"{environment['task']} at {environment['control_hz']:g} Hz, {environment['mode']}, world moving"
    out = Table(title=title)
    for name in (
        "run",
        "chunk latency p50 / p99 [ms]",
        "success under it",
        "95 % interval",
        "deadline misses",
    ):
        out.add_column(name, justify="left" if name == "run" else "right")
    for entry in results["runs"]:
        low, high = entry["interval"]
        out.add_row(
            entry["label"],
            f"{1e3 * entry['latency']['p50_s']:.0f} / {1e3 * entry['latency']['p99_s']:.0f}",
            f"{entry['successes']}/{entry['n']} = {entry['successes'] / entry['n']:.0%}",
            f"{low:.0%} … {high:.0%}",
            f"{entry['deadline_misses']} of {entry['chunks']} chunks",
        )
    for pair in results["comparisons"]:
        out.caption = (out.caption or "") + (
            f"accelerated - {pair['first']}: {pair['difference']:+.0%} "
            f"[{pair['interval'][0]:+.0%}, {pair['interval'][1]:+.0%}], McNemar p = {pair['p_value']:.2g}\n"
        )
    return out


def progress() -> Progress:
    """Bars on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
