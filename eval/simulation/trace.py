"""Chrome traces: open them in ui.perfetto.dev or chrome://tracing.

Each run is a process with two threads: what the robot executed (one slice a stretch of ticks of one source)
and what the policy thought (one slice an inference, from the observation to the chunk). A run in wall-clock
time has its ticks besides, each from its beginning to the robot's having been told, and the queue's depth.
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from vivace.deploy.loop.loop import Source
from vivace.deploy.telemetry.run_log import log_parts
from vivace.eval.output import write_json

_NAMES = {source.value[0]: source.value for source in Source}
_COLOURS = {"chunk": "good", "stale": "bad", "fallback": "terrible"}
_LOOP, _POLICY, _TICKS = 1, 2, 3
_SHOWN_TICKS = 50_000
"""Lines of a log that are shown, the last ones: more are too many for a browser."""


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


def write_run_trace(path: Path, log: Path, control_hz: float) -> None:
    """Write the trace of the end of a run in wall-clock time.

    Args:
        path: file to write.
        log: run.jsonl of the run, whose older parts are beside it; a line that was cut off is left out.
        control_hz: control rate [Hz].
    """
    lines: deque[str] = deque(maxlen=_SHOWN_TICKS)
    for part in log_parts(log):
        with part.open(encoding="utf-8") as file:
            lines.extend(file)
    events = [_label("process_name", 1, 0, "vivace run")]
    for thread, name in ((_LOOP, "executed"), (_POLICY, "policy"), (_TICKS, "ticks")):
        events.append(_label("thread_name", 1, thread, name))
    write_json(path, {"traceEvents": events + _logged(_parsed(lines), control_hz), "displayTimeUnit": "ms"})


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _logged(lines: Iterable[dict[str, Any]], control_hz: float) -> list[dict[str, Any]]:
    """Slices, counters and instants of log lines."""
    events: list[dict[str, Any]] = []
    asked_s = 0.0
    for line in lines:
        at_s = line["time_s"]
        if line["kind"] != "tick":
            instant = {"ph": "i", "s": "p", "pid": 1, "tid": _TICKS, "ts": round(1e6 * at_s, 3)}
            events.append(instant | {"name": f"{line['event']}: {line.get('why', '')}"})
            continue
        source = line["source"]
        events.append(_slice(1, _TICKS, f"tick {line['tick']}", at_s, line["work_s"]))
        events.append(_slice(1, _LOOP, source, at_s, 1 / control_hz) | {"cname": _COLOURS[source]})
        counter = {"ph": "C", "pid": 1, "ts": round(1e6 * at_s, 3), "name": "queue"}
        events.append(counter | {"args": {"actions": line["remaining"]}})
        if line["latency_s"] is not None:  # comes before what is asked for at the same tick
            events.append(_slice(1, _POLICY, "inference", asked_s, line["latency_s"]))
        if line["asked"]:
            asked_s = at_s
    return events


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
