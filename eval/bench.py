"""`vivace bench`: the claim and its baselines, timed interleaved in one process, batch 1."""

import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vivace.accel.accelerate import accelerate, calibrate
from vivace.accel.compile import compile_execution
from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.envs.registry import make
from vivace.eval.gather import calibration_data
from vivace.eval.lineup import Entry, lineup
from vivace.eval.machine import command as command_line
from vivace.eval.machine import machine, versions
from vivace.eval.output import output_folder, write_json
from vivace.eval.plans import load
from vivace.eval.settings import BenchCommand
from vivace.eval.timing import interleaved
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.staged import Execution, sample

console = Console(stderr=True)


def run(command: BenchCommand) -> tuple[dict[str, Any], bool]:
    """Calibrate every plan of the line-up, time them, print a table, write results.json."""
    if command.bench.threads:
        torch.set_num_threads(command.bench.threads)
    folder = output_folder("bench", command.output_dir, command.job_name)
    loaded = load(command)
    entries = [
        e for e in lineup(command.accel.updates, command.accel.bubbling, force_last=command.accel.force_last)
        if command.bench.compile or not e.is_compiled
    ]
    with console.status("collecting calibration observations (frozen world, the policy as trained)"):
        data = calibration_data(
            Session(loaded),
            lambda: make(command.env.type, command.env.task),
            command.accel.episodes,
            command.accel.samples,
            command.seed,
        )
    executions = build(loaded, entries, data)
    one = {key: value[:1] for key, value in data.batch.items()}
    runs = {
        name: lambda e=execution: sample(e, one, EpisodeNoise([(command.seed, 0)]))
        for name, execution in executions.items()
    }
    with Progress(console=console) as progress:
        bar = progress.add_task("timing", total=command.bench.repeats + command.bench.warmup)
        times = interleaved(
            runs,
            command.bench.repeats,
            command.bench.warmup,
            on_round=lambda done: progress.update(bar, completed=done),
        )
    reference = sample(executions["plain"], data.batch, EpisodeNoise(data.noise_keys))
    rows = [
        _row(entry, executions[entry.name], times, reference, data, one)
        for entry in entries
        if entry.name in executions
    ]
    results = {
        "format": 1,
        "kind": "bench",
        "command": command_line(),
        "versions": versions(),
        "machine": machine(command.policy.device),
        "seed": command.seed,
        "policy": {
            "path": str(command.policy.path),
            "type": loaded.staged.spec.type,
            "parameters": sum(p.numel() for p in loaded.policy.parameters()),
        },
        "pareto": rows,
        "latencies_s": times,
    }
    write_json(folder / "results.json", results)
    Console().print(table(rows))
    summary = {row["name"]: {"latency_ms": 1e3 * row["latency_s"], "ratio": row["ratio"]} for row in rows}
    return {"results": str(folder / "results.json"), "plans": summary}, is_met(command.require, summary)


def build(
    loaded: LoadedPolicy, entries: Sequence[Entry], data: CalibrationData
) -> dict[str, Execution]:
    """Calibrate and apply every entry; name -> execution. A sampler the policy does not have is left out."""
    executions: dict[str, Execution] = {}
    for entry in entries:
        with console.status(f"calibrating {entry.label}"), suppress(BadSetting):
            plan = calibrate(loaded.staged, loaded.fingerprint, data, entry.wanted)
            execution = accelerate(loaded.staged, plan)
            executions[entry.name] = compile_execution(execution) if entry.is_compiled else execution
    return executions


def _row(
    entry: Entry,
    execution: Execution,
    times: dict[str, list[float]],
    reference: torch.Tensor,
    data: CalibrationData,
    one: dict[str, torch.Tensor],
) -> dict[str, Any]:
    error = (sample(execution, data.batch, EpisodeNoise(data.noise_keys)) - reference).abs().mean()
    ratios = np.array(times["plain"]) / np.array(times[entry.name])
    low, high = np.percentile(ratios, [10, 90])
    return {
        "name": entry.name,
        "label": entry.label,
        "family": entry.family,
        "latency_s": statistics.median(times[entry.name]),
        "latency_spread": np.percentile(times[entry.name], [10, 90]).tolist(),
        "ratio": statistics.median(times["plain"]) / statistics.median(times[entry.name]),
        "ratio_spread": [float(low), float(high)],
        "action_error": float(error),
        "gflop": count_flops(execution, one).total / 1e9,
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows as a table a person reads."""
    out = Table(title="chunk latency, batch 1, interleaved; ratio of medians [10 % … 90 % of the rounds]")
    for name in ("plan", "ms", "ratio", "", "action error", "GFLOP"):
        out.add_column(name, justify="left" if name in ("plan", "") else "right")
    for row in rows:
        low, high = row["ratio_spread"]
        out.add_row(
            row["label"],
            f"{1e3 * row['latency_s']:.1f}",
            f"{row['ratio']:.2f}",
            f"[{low:.2f} … {high:.2f}]",
            f"{row['action_error']:.4f}",
            f"{row['gflop']:.2f}",
        )
    return out


def is_met(requirements: Sequence[str], summary: dict[str, dict[str, float]]) -> bool:
    """Check targets such as "bac.ratio>=3.4"; raises `BadSetting` if one cannot be read."""
    met = True
    for requirement in requirements:
        name, _, bound = requirement.partition(">=")
        run_name, _, field = name.strip().partition(".")
        try:
            value, needed = summary[run_name][field], float(bound)
        except (KeyError, ValueError) as error:
            raise BadSetting(
                f"requirement {requirement!r} cannot be read; form: <run>.<value>>=<number>, "
                f"runs: {', '.join(summary)}"
            ) from error
        if value < needed:
            console.print(f"missed: {requirement} (got {value:.3f})", style="red")
            met = False
    return met
