"""One episode per run as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing.

Each run is a process with two threads: what the robot executed (one slice a stretch of ticks of one source)
and what the policy thought (one slice an inference, from the observation to the chunk).
"""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from vivace.deploy.loop import Source
from vivace.eval.output import write_json

_NAMES = {source.value[0]: source.value for source in Source}
_COLOURS = {"chunk": "good", "stale": "bad", "fallback": "terrible"}
_LOOP, _POLICY = 1, 2


def write_trace(path: Path, episodes: Mapping[str, Mapping[str, Any]], control_hz: float) -> None:
    """Write the trace of one episode per run.

    Args:
        path: file to write.
        episodes: run name -> `EpisodeResult` as plain data.
        control_hz: control rate [Hz].
    """
    events: list[dict[str, Any]] = []
    for process, (name, episode) in enumerate(episodes.items(), start=1):
        events += [_label("process_name", process, 0, name)]
        events += [_label("thread_name", process, _LOOP, "control loop")]
        events += [_label("thread_name", process, _POLICY, "policy")]
        events += _executed(process, episode["timeline"], control_hz)
        events += [
            _slice(process, _POLICY, "inference", tick / control_hz, latency_s)
            for tick, latency_s in zip(episode["request_ticks"], episode["latencies_s"], strict=True)
        ]
    write_json(path, {"traceEvents": events, "displayTimeUnit": "ms"})


def stretches(timeline: str) -> list[tuple[str, int, int]]:
    """Return (source, first tick, number of ticks) of a timeline such as "ffccccs"."""
    found, tick = [], 0
    for letter, group in groupby(timeline):
        length = len(list(group))
        found.append((_NAMES[letter], tick, length))
        tick += length
    return found


def _executed(process: int, timeline: str, control_hz: float) -> list[dict[str, Any]]:
    return [
        _slice(process, _LOOP, source, tick / control_hz, length / control_hz) | {"cname": _COLOURS[source]}
        for source, tick, length in stretches(timeline)
    ]


def _slice(process: int, thread: int, name: str, start_s: float, length_s: float) -> dict[str, Any]:
    times = {"ts": round(1e6 * start_s, 3), "dur": round(1e6 * length_s, 3)}
    return {"ph": "X", "pid": process, "tid": thread, "name": name, **times}


def _label(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}}
