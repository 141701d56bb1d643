"""What is left of `vivace run`: results.json, the report, the trace and the film."""

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.eval.machine import command as command_line
from vivace.eval.machine import processor, versions
from vivace.eval.output import write_json
from vivace.eval.terminal import console

if TYPE_CHECKING:
    from vivace.eval.run import Parts

_ERRORS = 20
"""Errors of the worker that are kept."""


def results(parts: "Parts") -> dict[str, Any]:
    """All that was measured, as plain data."""
    command, bundle, recorder = parts.command, parts.bundle, parts.recorder
    found = recorder.statistics.summary()
    periods = found["ticks"] + found["skipped_deadlines"]
    return {
        "format": 1,
        "kind": "run",
        "command": command_line(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": {"cpu": processor(), "providers": ", ".join(command.loop.providers)},
        "seed": command.seed,
        "bundle": {
            "path": str(bundle.folder),
            "name": bundle.name,
            "type": bundle.spec.type,
            "techniques": list(bundle.receipt.get("techniques", ())),
            "horizon": bundle.spec.horizon,
        },
        "robot": {"type": command.robot.type, "task": command.robot.task},
        "settings": {
            "control_hz": command.rate_hz,
            "trained_hz": bundle.spec.control_hz,
            "mode": command.loop.mode,
            "n_action_steps": parts.settings.n_action_steps,
            "cpu_load": command.cpu_load,
            "limits": parts.limits_from,
        },
        "realtime": [
            {"what": grant.what, "is_granted": grant.is_granted, "why": grant.why} for grant in parts.grants
        ],
        "duration_s": time.monotonic() - recorder.began_s,
        "was_interrupted": parts.was_interrupted,
        "ladder": [
            {"bundle": rung.name, "longest_s": rung.p99_s, "chosen": parts.choices[rung.name]}
            for rung in parts.ladder
        ],
        "run": found | {"decided": 1.0 - found["skipped_deadlines"] / periods if periods else 0.0},
        "histograms": {
            name: getattr(recorder.statistics, name).buckets() for name in ("latency", "jitter", "work")
        },
        "watchdog": {
            "state": parts.watchdog.state.value,
            "counts": {state.value: count for state, count in parts.watchdog.counts.items()},
        },
        "worker": {"restarts": parts.worker.restarts, "errors": parts.worker.errors[-_ERRORS:]},
        "robot_errors": list(getattr(parts.robot, "errors", []))[-_ERRORS:],
        "events": list(recorder.events),
        "log": {"dropped": recorder.log.dropped, "errors": recorder.log.errors},
        "memory_mb": dict(zip(("first", "largest", "last"), recorder.memory_mb, strict=False)),
        "episodes": parts.episodes,
        "video": None,
    }


def write(folder: Path, found: dict[str, Any], parts: "Parts") -> None:
    """Write results.json first, then what is made from it and from the log."""
    write_json(folder / "results.json", found)
    if parts.command.video and hasattr(parts.robot, "film"):
        found["video"] = _write_film(folder, parts)
        write_json(folder / "results.json", found)
    try:
        from vivace.eval.results import write_pages
    except ImportError as error:  # a robot's computer need not draw
        again = f"vivace report --results={folder}"
        console.print(f"no report: {error.name} is not installed; where it is: {again}", highlight=False)
        return
    write_pages(folder, found)


def summary(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The last line on stdout."""
    run, report = found["run"], folder / "report.html"
    return {
        "results": str(folder / "results.json"),
        "report": str(report) if report.is_file() else None,
        "duration_s": round(found["duration_s"], 2),
        "ticks": run["ticks"],
        "skipped_deadlines": run["skipped_deadlines"],
        "undecided_ticks": run["undecided_ticks"],
        "deadline_misses": run["deadline_misses"],
        "sources": run["sources"],
        "guarded": run["guarded"],
        "effective_hz": round(run["effective_hz"], 2),
        "latency_p50_ms": _ms(run["latency"]["p50_s"]),
        "latency_p99_ms": _ms(run["latency"]["p99_s"]),
        "jitter_p99.9_ms": _ms(run["jitter"]["p99.9_s"]),
        "worker_restarts": found["worker"]["restarts"],
        "state": found["watchdog"]["state"],
        "successes": sum(episode["success"] for episode in found["episodes"]),
        "episodes": len(found["episodes"]),
        "was_interrupted": found["was_interrupted"],
    }


def _write_film(folder: Path, parts: "Parts") -> str | None:
    """Draw the last seconds; each frame says what was executed next."""
    from vivace.eval.video import caption, write_video

    executed = parts.recorder.film
    first = parts.recorder.statistics.ticks - len(executed)
    hz = parts.command.rate_hz
    frames = [
        caption(frame, parts.bundle.name, executed[number - first][0].value, number, hz)
        for number, frame in parts.robot.film()
        if number >= first
    ]
    if not frames:
        return None
    write_video(folder / "run.mp4", frames, parts.robot.film_fps)
    return "run.mp4"


def _ms(time_s: float | None) -> float | None:
    return None if time_s is None else round(1e3 * time_s, 3)
