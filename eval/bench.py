"""`vivace bench`: the claim and its baselines, timed interleaved in one process at batch 1.

With `--bench.n_episodes` every plan also runs the same episodes in a frozen world, so that a Pareto table of
latency against success comes out of one command.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.compile import compile_execution
from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.envs.registry import make
from vivace.eval.episode import EpisodeResult, append_result, load_results
from vivace.eval.gather import calibration_data
from vivace.eval.lineup import Entry, lineup
from vivace.eval.machine import command as command_line
from vivace.eval.machine import machine, versions
from vivace.eval.output import claim, output_folder, write_json
from vivace.eval.plans import load
from vivace.eval.report import write_report
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.rollout import RolloutSettings, rollout
from vivace.eval.settings import BenchCommand, CommonOptions
from vivace.eval.statistics import paired_difference, ratio_of_medians, wilson_interval
from vivace.eval.timing import interleaved
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.staged import Execution, sample

console = Console(stderr=True)


def run(command: BenchCommand) -> tuple[dict[str, Any], bool]:
    """Calibrate every plan of the line-up, time them, judge them, print a table, write results.json."""
    if command.bench.threads:
        torch.set_num_threads(command.bench.threads)
    loaded = load(command)
    entries = _entries(command)
    values = ("ratio", "success") if command.bench.n_episodes else ("ratio",)
    requirements = read_requirements(command.require, [entry.name for entry in entries], values)
    folder = output_folder("bench", command.output_dir, command.job_name)
    claim(folder, _identity(command, loaded, entries))
    with console.status("collecting calibration observations (frozen world, the policy as trained)"):
        data = calibration_data(
            Session(loaded),
            lambda: make(command.env.type, command.env.task),
            command.accel.episodes,
            command.accel.samples,
        )
    executions = build(loaded, entries, data)
    entries = [entry for entry in entries if entry.name in executions]
    times = _time(executions, command, data)
    reference = sample(executions["plain"], data.batch, EpisodeNoise(data.noise_keys))
    rows = [pareto_row(entry, executions[entry.name], times, reference, data) for entry in entries]
    if command.bench.n_episodes:
        eager = {entry.name for entry in entries if not entry.is_compiled}
        _judge([row for row in rows if row["name"] in eager], executions, command, loaded, folder)
    results = {
        "format": 1,
        "kind": "bench",
        "command": command_line(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(command.policy.device),
        "seed": command.seed,
        "policy": describe(command, loaded),
        "environment": {"type": command.env.type, "task": command.env.task},
        "pareto": rows,
        "latencies_s": times,
    }
    write_json(folder / "results.json", results)
    write_report(folder, results)
    Console().print(table(rows))
    kept = ("latency_s", "ratio", "action_error", "success")
    summary = {row["name"]: {key: row[key] for key in kept if key in row} for row in rows}
    return {"results": str(folder / "results.json"), "plans": summary}, are_met(requirements, summary)


def describe(command: CommonOptions, loaded: LoadedPolicy) -> dict[str, Any]:
    """What a reader of results must know of the policy."""
    spec = loaded.staged.spec
    return {
        "path": str(command.policy.path),
        "type": spec.type,
        "parameters": sum(p.numel() for p in loaded.policy.parameters()),
        "sampler": loaded.staged.sampler.name,
        "n_steps": len(loaded.staged.sampler),
        "horizon": spec.horizon,
        "n_action_steps": command.policy.n_action_steps or spec.n_action_steps,
        "weights": loaded.fingerprint.weights,
    }


def build(loaded: LoadedPolicy, entries: Sequence[Entry], data: CalibrationData) -> dict[str, Execution]:
    """Calibrate and apply every entry; name -> execution. A sampler the policy does not have is left out."""
    executions: dict[str, Execution] = {}
    for entry in entries:
        with console.status(f"calibrating {entry.label}"), suppress(BadSetting):
            plan = calibrate(loaded.staged, loaded.fingerprint, data, entry.wanted)
            execution = accelerate(loaded.staged, plan)
            executions[entry.name] = compile_execution(execution) if entry.is_compiled else execution
    return executions


def pareto_row(
    entry: Entry,
    execution: Execution,
    times: Mapping[str, Sequence[float]],
    reference: torch.Tensor,
    data: CalibrationData,
) -> dict[str, Any]:
    """Latency, ratio to the plain loop, action error and FLOPs of one plan.

    Args:
        entry: the plan.
        execution: the policy under it.
        times: name -> latencies [s], of the same rounds; "plain" is what the others are compared with.
        reference: normalised actions (B, H, A) of the plain loop on `data`, with the same noise.
        data: observations to compare actions on.
    """
    error = None
    if not entry.is_compiled:  # it gives the eager actions, and another batch size is another graph
        actions = sample(execution, data.batch, EpisodeNoise(data.noise_keys))
        error = float((actions - reference).abs().mean())
    ratio = ratio_of_medians(times["plain"], times[entry.name])
    one = {key: value[:1] for key, value in data.batch.items()}
    return {
        "name": entry.name,
        "label": entry.label,
        "family": entry.family,
        "latency_s": float(np.median(times[entry.name])),
        "latency_spread": np.percentile(times[entry.name], [10, 90]).tolist(),
        "ratio": ratio.ratio,
        "ratio_interval": list(ratio.interval),
        "action_error": error,
        "gflop": count_flops(execution, one).total / 1e9 if not entry.is_compiled else None,
    }


def _entries(command: BenchCommand) -> list[Entry]:
    everything = lineup(command.accel.updates, command.accel.bubbling, force_last=command.accel.force_last)
    known = [entry.name for entry in everything]
    for name in command.bench.only:
        if name not in known:
            raise BadSetting(f"bench.only names {name!r}; known plans: {', '.join(known)}")
    return [
        entry
        for entry in everything
        if (command.bench.compile or not entry.is_compiled)
        and (not command.bench.only or entry.name in ("plain", *command.bench.only))
    ]


def _identity(command: BenchCommand, loaded: LoadedPolicy, entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "verb": "bench",
        "weights": loaded.fingerprint.weights,
        "plans": {entry.name: entry.wanted for entry in entries if not entry.is_compiled},
        "calibration": [command.accel.episodes, command.accel.samples],
        "env": vars(command.env),
        "seed": command.seed,
        "n_action_steps": command.policy.n_action_steps,
    }


def _time(
    executions: Mapping[str, Execution], command: BenchCommand, data: CalibrationData
) -> dict[str, list[float]]:
    one = {key: value[:1] for key, value in data.batch.items()}
    runs = {
        name: lambda e=execution: sample(e, one, EpisodeNoise([(command.seed, 0)]))
        for name, execution in executions.items()
    }
    with Progress(console=console) as progress:
        bar = progress.add_task("timing", total=command.bench.repeats + 1)
        return interleaved(
            runs, command.bench.repeats, on_round=lambda done: progress.update(bar, completed=done)
        )


def _judge(
    rows: list[dict[str, Any]],
    executions: Mapping[str, Execution],
    command: BenchCommand,
    loaded: LoadedPolicy,
    folder: Path,
) -> None:
    """Add frozen-world success of every plan, and its difference to the plain loop on the same seeds.

    Compiled plans are left out: they give the eager ones' actions, and every batch size is a new graph.
    """
    settings = RolloutSettings(
        n_episodes=command.bench.n_episodes,
        seed=command.seed,
        batch_size=command.bench.batch_size,
        control_hz=command.env.control_hz,
        n_action_steps=command.policy.n_action_steps,
        max_steps=command.env.max_steps,
    )
    (folder / "episodes").mkdir(exist_ok=True)
    outcomes: dict[str, dict[int, bool]] = {}
    with Progress(console=console) as progress:
        for row in rows:
            store = folder / "episodes" / f"{row['name']}.jsonl"
            done = load_results(store)
            bar = progress.add_task(row["label"], total=settings.n_episodes, completed=len(done))

            def on_episode(result: EpisodeResult, store: Path = store, bar: Any = bar) -> None:
                append_result(store, result)
                progress.advance(bar)

            session = Session(loaded, executions[row["name"]])
            episodes = rollout(
                lambda: make(command.env.type, command.env.task),
                session.predict,
                session.spec,
                settings,
                on_episode,
                done,
            )
            outcomes[row["name"]] = {e.seed: e.success for e in episodes}
    for row in rows:
        mine = outcomes[row["name"]]
        pair = paired_difference(outcomes["plain"], mine)
        row |= {
            "successes": sum(mine.values()),
            "n": len(mine),
            "success": sum(mine.values()) / len(mine),
            "interval": wilson_interval(sum(mine.values()), len(mine)),
            "difference": pair.difference,
            "difference_interval": pair.interval,
            "p_value": pair.p_value,
        }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as a table a person reads."""
    out = Table(title="chunk latency at batch 1, interleaved; ratio of medians with its 95 % interval")
    judged = any("n" in row for row in rows)
    names = ["plan", "ms", "ratio", "", "action error", "GFLOP"]
    names += ["success", "95 % interval", "- plain"] if judged else []
    for name in names:
        out.add_column(name, justify="left" if name in ("plan", "") else "right")
    for row in rows:
        low, high = row["ratio_interval"]
        cells = [
            row["label"],
            f"{1e3 * row['latency_s']:.1f}",
            f"{row['ratio']:.2f}",
            f"[{low:.2f} … {high:.2f}]",
            "as eager" if row["action_error"] is None else f"{row['action_error']:.4f}",
            "" if row["gflop"] is None else f"{row['gflop']:.2f}",
        ]
        if "interval" in row:
            low, high = row["interval"]
            cells += [
                f"{row['successes']}/{row['n']}",
                f"{low:.1%} … {high:.1%}",
                f"{row['difference']:+.1%}",
            ]
        out.add_row(*cells)
    return out
