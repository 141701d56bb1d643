"""Latencies of several executions on this machine, measured together and kept for the next run.

Keeping them makes an evaluation repeatable: with the same seed, machine, policy and plan a second run meets
the same latencies. `--latency.refresh=true` measures again.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vivace.accel.technique import CalibrationData
from vivace.eval.machine import machine, versions
from vivace.eval.output import read_json, write_json
from vivace.eval.terminal import progress
from vivace.eval.timing import interleaved
from vivace.policies.dtype import dtype_of
from vivace.policies.noise import EpisodeNoise
from vivace.policies.staged import Execution, sample

CACHE = Path("outputs/latency")


def chunk_latencies(
    executions: Mapping[str, Execution],
    data: CalibrationData,
    repeats: int,
    others: Mapping[str, Callable[[CalibrationData], object]] = MappingProxyType({}),
) -> dict[str, list[float]]:
    """Time chunks of every execution at batch 1, interleaved; name -> latencies [s].

    Args:
        executions: name -> what to time.
        data: observations, one a round, in turn: decoding some takes longer than others.
        repeats: timed rounds.
        others: name -> what else is timed in the same rounds, given one observation.
    """
    device = next(iter(data.batch.values())).device
    chunks = {name: partial(_chunk, execution) for name, execution in executions.items()} | dict(others)
    runs = {name: partial(_next, chunk, itertools.cycle(data.ones())) for name, chunk in chunks.items()}
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with progress() as bars:
        bar = bars.add_task("measuring latencies, interleaved", total=repeats + 1)
        return interleaved(
            runs, repeats, on_round=lambda done: bars.update(bar, completed=done), synchronise=synchronise
        )


def compile_graphs(execution: Execution, data: CalibrationData) -> None:
    """Run once on every observation: what tokens come out decides which sizes of block there are."""
    for one in data.ones():
        _chunk(execution, one)


def _next(chunk: Callable[[CalibrationData], object], observations: Iterator[CalibrationData]) -> None:
    chunk(next(observations))


def _chunk(execution: Execution, one: CalibrationData) -> None:
    sample(execution, one.batch, EpisodeNoise(one.noise_keys), one.draft)


def measured_latencies(
    executions: Mapping[str, Execution],
    data: CalibrationData,
    identity: Mapping[str, Any],
    repeats: int,
    refresh: bool = False,
) -> dict[str, list[float]]:
    """Return `chunk_latencies`, read from the last time if they were measured before.

    Args:
        executions: name -> what to time.
        data: observations, one a round.
        identity: JSON-able; what the latencies depend on besides the machine: policy, plans, repeats.
        repeats: timed rounds.
        refresh: measure again although they are known.
    """
    device = str(next(iter(data.batch.values())).device)
    policy = getattr(next(iter(executions.values())).policy, "policy", None)
    where = machine(device, dtype_of(policy))
    known = _file(dict(identity), executions, where)
    if known.is_file() and not refresh:
        return read_json(known, "latency measurement")["latencies_s"]
    times = chunk_latencies(executions, data, repeats)
    known.parent.mkdir(parents=True, exist_ok=True)
    write_json(known, {"machine": where, "versions": versions(), "latencies_s": times})
    return times


def _file(
    identity: dict[str, Any], executions: Mapping[str, Execution], where: Mapping[str, str | int]
) -> Path:
    key = {"what": identity, "runs": list(executions), "machine": dict(where), "versions": versions()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return CACHE / f"{digest[:16]}.json"
