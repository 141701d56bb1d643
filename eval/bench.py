"""`vivace bench`: the claim and its baselines, timed interleaved in one process at batch 1.

With `--bench.n_episodes` every plan also runs the same episodes in a frozen world, so many of every task, so
that a Pareto table of latency against success comes out of one command.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.compile import compile_execution
from vivace.accel.flops import count_flops
from vivace.accel.greedy import GreedyExecuted, executed_tokens
from vivace.accel.layer_curve import policy_curve
from vivace.accel.plan import FILE_NAME
from vivace.accel.technique import CalibrationData
from vivace.eval.bundle_rows import BundleRun
from vivace.eval.bundle_table import bundle_table
from vivace.eval.latencies import chunk_latencies, compile_graphs
from vivace.eval.lineup import SAVED, Entry, lineup_for
from vivace.eval.output import claim, output_folder
from vivace.eval.plans import env_maker, load, load_plan, observe, session
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.results import circumstances, write_results
from vivace.eval.rollout import RolloutSettings
from vivace.eval.settings import BenchCommand
from vivace.eval.stage_table import stage_table
from vivace.eval.statistics import paired_difference, percentile, ratio_of_medians, wilson_interval
from vivace.eval.terminal import console
from vivace.eval.threads import choose_threads, restored_threads
from vivace.eval.timing import Rounds
from vivace.eval.trials import stored_rollout
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.staged import Execution, decode, executing, sample


@restored_threads()
def run(command: BenchCommand) -> tuple[dict[str, Any], bool]:
    """Calibrate every plan of the line-up, time them, judge them, print a table, write results.json."""
    loaded = load(command)
    entries = _entries(command, loaded)
    values = ("ratio", "success") if command.bench.n_episodes else ("ratio",)
    requirements = read_requirements(command.require, [entry.name for entry in entries], values)
    exported = [BundleRun(path, loaded, command.bench.threads) for path in command.bench.bundles]
    folder = output_folder("bench", command.output_dir, command.job_name)
    claim(folder, _identity(command, loaded, entries))
    threads = _choose_threads(command, loaded, entries)
    data = observe(command, loaded)
    executions = build(loaded, [entry for entry in entries if entry not in SAVED], data)
    executions |= _saved(command, loaded, entries, data)
    entries = [entry for entry in entries if entry.name in executions]
    others = {run.name: run for run in exported}
    sessions = {name: session(command, loaded, execution) for name, execution in executions.items()}
    measured = chunk_latencies({**sessions, **others}, data, Rounds(repeats=command.bench.repeats))
    times = measured.times_s
    reference = sample(executions["plain"], data.batch, EpisodeNoise(data.noise_keys))
    rows = [pareto_row(entry, executions[entry.name], times, reference, data) for entry in entries]
    rows += [run.row(times, reference, data) for run in exported]
    for row in rows:
        row["stages_s"] = measured.stages_s.get(row["name"], {})
    if command.bench.n_episodes:
        eager = {entry.name for entry in entries if not entry.is_compiled}
        steps = {entry.name: entry.n_action_steps for entry in entries}
        _judge([row for row in rows if row["name"] in eager], executions, steps, command, loaded, folder)
    results = circumstances("bench", command, loaded) | {"pareto": rows, "latencies_s": times}
    results["threads"] = threads
    if hasattr(loaded.staged, "language"):
        results["layer_curve"] = {
            rule: policy_curve(executions["plain"], data, rule) for rule in ("importance", "uniform")
        }
    write_results(folder, results)
    Console().print(table(rows))
    Console().print(stage_table(rows))
    if exported:
        Console().print(bundle_table(rows))
    kept = ("latency_s", "ratio", "action_error", "success")
    summary = {row["name"]: {key: row[key] for key in kept if key in row} for row in rows}
    return {"results": str(folder / "results.json"), "plans": summary}, are_met(requirements, summary)


def build(loaded: LoadedPolicy, entries: Sequence[Entry], data: CalibrationData) -> dict[str, Execution]:
    """Calibrate and apply every entry; name -> execution. A sampler the policy does not have is left out."""
    executions: dict[str, Execution] = {}
    eager: dict[str, Execution] = {}
    for entry in entries:
        wanted = repr(entry.wanted)
        with console.status(f"calibrating {entry.label}"), suppress(BadSetting):
            if wanted not in eager:
                policy = executing(loaded.staged, entry.n_action_steps)
                eager[wanted] = accelerate(policy, calibrate(policy, loaded.fingerprint, data, entry.wanted))
            executions[entry.name] = _made(entry, eager[wanted], data)
    return executions


def _choose_threads(command: BenchCommand, loaded: LoadedPolicy, entries: Sequence[Entry]) -> dict[str, Any]:
    """Choose torch's threads by the saved plan if it is there, else by the plain loop."""
    runs = {"plain": session(command, loaded)}
    if SAVED[0] in entries:
        execution = accelerate(loaded.staged, load_plan(command, loaded))
        runs[SAVED[0].name] = session(command, loaded, execution)
    return choose_threads(runs, command.bench.threads, command.policy.device)


def _saved(
    command: BenchCommand, loaded: LoadedPolicy, entries: Sequence[Entry], data: CalibrationData
) -> dict[str, Execution]:
    """The policy under the plan saved beside it, as far as that is asked for."""
    wanted = [entry for entry in SAVED if entry in entries]
    if not wanted:
        return {}
    execution = accelerate(loaded.staged, load_plan(command, loaded))
    with console.status("making the saved plan ready"):
        return {entry.name: _made(entry, execution, data) for entry in wanted}


def _made(entry: Entry, execution: Execution, data: CalibrationData) -> Execution:
    """Return an execution as the entry has it; if compiled, with all graphs that the observations need."""
    if not entry.is_compiled:
        return execution
    compiled = compile_execution(execution)
    if compiled.writes_tokens:
        compile_graphs(compiled, data)
    return compiled


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
        actions = sample(execution, data.batch, EpisodeNoise(data.noise_keys), data.draft)
        error = float((actions - reference).abs().mean())
    ratio = ratio_of_medians(times["plain"], times[entry.name])
    tokens = _token_row(entry, execution, times[entry.name], data) if execution.writes_tokens else {}
    return tokens | {
        "name": entry.name,
        "label": entry.label,
        "family": entry.family,
        "latency_s": float(np.median(times[entry.name])),
        "latency_spread": [percentile(times[entry.name], p) for p in (10, 90)],
        "ratio": ratio.ratio,
        "ratio_interval": list(ratio.interval),
        "action_error": error,
        "gflop": count_flops(execution, data.one).total / 1e9 if not entry.is_compiled else None,
    }


def _token_row(
    entry: Entry, execution: Execution, times: Sequence[float], data: CalibrationData
) -> dict[str, Any]:
    """Passes and tokens a second of a policy that writes tokens.

    Returns:
        "tokens_per_s" over the whole chunk, reading the prompt included; "latency_p95_s", "latency_max_s";
        and unless the plan is compiled, which takes as many passes as without: "passes" mean over
        observations, "passes_of" every one of them, "settled" mean pass at which each token of the chunk
        last changed.
    """
    policy: Any = execution.policy
    n = executed_tokens(policy) if isinstance(execution.decoder, GreedyExecuted) else policy.n_tokens
    row = {
        "tokens_per_s": n / float(np.median(times)),
        "latency_p95_s": percentile(times, 95),
        "latency_max_s": max(times),
    }
    if entry.is_compiled:
        return row
    found = decode(execution, data.batch, EpisodeNoise(data.noise_keys), data.draft)
    return row | {
        "passes": float(found.passes.float().mean()),
        "passes_of": found.passes.tolist(),
        "settled": found.settled.float().mean(0).tolist(),
    }


def _entries(command: BenchCommand, loaded: LoadedPolicy) -> list[Entry]:
    everything = list(lineup_for(loaded.staged, command.accel))
    if command.accel.path or (loaded.path / FILE_NAME).is_file():
        everything += SAVED
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
        "saved": load_plan(command, loaded).to_json()["techniques"] if SAVED[0] in entries else None,
        "calibration": [command.accel.episodes, command.accel.samples],
        "env": vars(command.env),
        "seed": command.seed,
        "n_action_steps": command.policy.n_action_steps,
    }


def _judge(
    rows: list[dict[str, Any]],
    executions: Mapping[str, Execution],
    steps: Mapping[str, int | None],
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
    outcomes: dict[str, dict[tuple[str, int], bool]] = {}
    for row in rows:
        found = outcomes.setdefault(row["name"], {})
        for task in command.env.tasks:
            runner = session(command, loaded, executions[row["name"]], task)
            name = row["name"] if len(command.env.tasks) == 1 else f"{row['name']}.{task}"
            episodes = stored_rollout(
                folder / "episodes" / f"{name}.jsonl",
                f"{row['label']}, {task}",
                env_maker(command, runner.spec, task),
                runner.predict,
                runner.spec,
                replace(settings, n_action_steps=steps[row["name"]] or settings.n_action_steps),
            )
            found |= {(task, e.seed): e.success for e in episodes}
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
        if len(command.env.tasks) > 1:
            row["tasks"] = {
                task: sum(success for (where, _), success in mine.items() if where == task)
                for task in command.env.tasks
            }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as a table a person reads."""
    out = Table(title="chunk latency at batch 1, interleaved; ratio of medians with its 95 % interval")
    judged = any("n" in row for row in rows)
    writes = any("passes" in row for row in rows)
    names = ["plan", "ms", "ratio", "", "action error", "GFLOP"]
    names += ["passes", "tokens/s"] if writes else []
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
        if writes and "tokens_per_s" not in row:
            cells += ["", ""]
        elif writes:
            passes = f"{row['passes']:.1f}" if "passes" in row else "as eager"
            cells += [passes, f"{row['tokens_per_s']:.0f}"]
        if "interval" in row:
            low, high = row["interval"]
            cells += [
                f"{row['successes']}/{row['n']}",
                f"{low:.1%} … {high:.1%}",
                f"{row['difference']:+.1%}",
            ]
        out.add_row(*cells)
    return out
