"""What is left of `vivace run`: results.json and, if asked for, report, trace and film."""

import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.deploy.loop.robot import Films, Guarded, Measures, able
from vivace.deploy.loop.watchdog import State
from vivace.eval.machine import command as command_line
from vivace.eval.machine import commit, cores, processor, versions
from vivace.eval.obstacles import in_a_line
from vivace.eval.output import write_json
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting

if TYPE_CHECKING:
    from vivace.eval.live.parts import Parts

RESULTS = "results.json"
_ERRORS = 20
"""Errors of the worker and of the robot that are kept."""


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
        "commit": commit(),
        "machine": _machine(parts),
        "seed": command.seed,
        "bundle": {
            "path": str(bundle.folder),
            "name": bundle.name,
            "type": bundle.spec.type,
            "techniques": list(bundle.receipt.get("techniques", ())),
            "horizon": bundle.spec.horizon,
        },
        "settings": _settings(parts),
        "realtime": [
            {"what": grant.what, "is_granted": grant.is_granted, "why": grant.why} for grant in parts.grants
        ],
        "duration_s": recorder.duration_s,
        "was_interrupted": bool(parts.signal),
        "warmup_s": parts.warmup_s,
        "ladder": [
            {"bundle": rung.name, "longest_s": rung.p99_s, "chosen": parts.choices[rung.name]}
            for rung in parts.ladder
        ],
        "run": found | {"decided": 1.0 - found["skipped_deadlines"] / periods if periods else 0.0},
        "histograms": {
            name: getattr(recorder.statistics, name).buckets() for name in ("latency", "jitter", "work")
        },
        "robot": {"type": command.robot.type, "task": command.robot.task},
        **_measured(parts),
        **_troubles(parts),
        "events": list(recorder.events),
        "log": {
            "dropped": recorder.log.dropped,
            "errors": recorder.log.errors,
            "unsaid": recorder.screen.dropped,
        },
        "memory_mb": dict(zip(("first", "largest", "last"), recorder.memory_mb, strict=False)),
        "episodes": parts.episodes,
        "video": None,
    }


def _machine(parts: "Parts") -> dict[str, Any]:
    """What computed."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": parts.threads.n,
        "threads_from": parts.threads.told,
        "threads_latency_s": dict(parts.threads.latency_s),
        "providers": ", ".join(parts.command.inference.providers),
    }


def _settings(parts: "Parts") -> dict[str, Any]:
    """How the run was asked to be."""
    command, bundle = parts.command, parts.bundle
    return {
        "control_hz": command.rate_hz,
        "trained_hz": bundle.spec.control_hz,
        "mode": command.loop.mode,
        "n_action_steps": command.loop.fresh_actions(bundle.spec),
        "cpu_load": command.cpu_load,
        "limits": parts.limits_from,
    }


def _measured(parts: "Parts") -> dict[str, Any]:
    """What the robot measured of its actions, if it does."""
    robot = able(parts.robot, Measures)
    return {} if robot is None else {"measured": robot.measured}


def _troubles(parts: "Parts") -> dict[str, Any]:
    """How the run ended, and what failed before."""
    return {
        "ending": {"signal": parts.signal, "fault": _told(parts.fault), "is_at_rest": parts.is_at_rest},
        "watchdog": {
            "state": parts.watchdog.state.value,
            "why": parts.watchdog.why,
            "counts": {state.value: count for state, count in parts.watchdog.counts.items()},
        },
        "worker": {
            "restarts": parts.worker.restarts,
            "failures": parts.failures,
            "errors": parts.worker.errors[-_ERRORS:],
        },
        "robot_failures": {
            "counts": dict(parts.robot.failures),
            "errors": list(parts.robot.errors)[-_ERRORS:],
        },
        "deadman": None if (robot := able(parts.robot, Guarded)) is None else robot.deadman,
    }


def write(folder: Path, found: dict[str, Any]) -> None:
    """Write results.json.

    Raises:
        BadSetting: it cannot be written, as on a full disk.
    """
    try:
        write_json(folder / RESULTS, found)
    except OSError as error:
        raise BadSetting(
            f"the run is over and the robot is told to stand still, but {folder / RESULTS} cannot be written "
            f"({error.strerror}); make room there, or give another --output_dir"
        ) from error


def draw(folder: Path, found: dict[str, Any], parts: "Parts") -> None:
    """Draw what is made from results.json, the log and a simulation; says why where it cannot."""
    try:
        from vivace.eval.report.results import write_pages

        if parts.command.video and (robot := able(parts.robot, Films)) is not None:
            found["video"] = _write_film(folder, parts, robot)
            write(folder, found)
        write_pages(folder, found)
    except Exception as error:  # a robot's computer need not draw, and what was measured is written
        console.print(f"no report: {in_a_line(error)}", highlight=False, markup=False)


def tell_ending(parts: "Parts", folder: Path) -> None:
    """Say in the terminal why the run ended if nobody wanted it, what failed, and how to draw it."""
    lines = []
    if parts.has_crashed:
        lines.append((f"ended by {type(parts.fault).__name__}: {parts.fault}", "red"))
    if parts.watchdog.state == State.STOP:
        lines.append((f"ended stopped by the watchdog: {parts.watchdog.why}", "red"))
    if not parts.is_at_rest:
        lines.append(("the robot did not take its last command, a standstill; switch it off", "bold red"))
    counts = {"the robot": parts.robot.failures.total(), "inference": parts.failures}
    last = {"the robot": list(parts.robot.errors)[-1:], "inference": parts.worker.errors[-1:]}
    for who, count in counts.items():
        if count:
            lines.append((f"{who} failed {count} times{'; '.join(['', *last[who]])}", "yellow"))
    if not (folder / "report.html").is_file():
        lines.append((f"report and trace: vivace report --results={folder}", ""))
    with suppress(OSError):  # the terminal may be gone
        for text, style in lines:
            console.print(text, style=style, highlight=False, markup=False)


def _told(fault: BaseException | None) -> dict[str, str] | None:
    if fault is None:
        return None
    trace = "".join(traceback.format_exception(fault))
    return {"type": type(fault).__name__, "message": str(fault), "trace": trace}


def summary(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The last line on stdout."""
    run, report = found["run"], folder / "report.html"
    return {
        "results": str(folder / "results.json"),
        "report": str(report) if report.is_file() else None,
        "draw": None if report.is_file() else f"vivace report --results={folder}",
        "duration_s": round(found["duration_s"], 2),
        "ticks": run["ticks"],
        "skipped_deadlines": run["skipped_deadlines"],
        "undecided_ticks": run["undecided_ticks"],
        "deadline_misses": run["deadline_misses"],
        "stood_still_s": round(run["stood_still_s"], 2),
        "sources": run["sources"],
        "guarded": run["guarded"],
        "effective_hz": round(run["effective_hz"], 2),
        "latency_p50_ms": _ms(run["latency"]["p50_s"]),
        "latency_p99_ms": _ms(run["latency"]["p99_s"]),
        "jitter_p99.9_ms": _ms(run["jitter"]["p99.9_s"]),
        "worker_restarts": found["worker"]["restarts"],
        "state": found["watchdog"]["state"],
        "why": found["watchdog"]["why"],
        "is_at_rest": found["ending"]["is_at_rest"],
        "robot_failures": sum(found["robot_failures"]["counts"].values()),
        "successes": sum(episode["success"] for episode in found["episodes"]),
        "episodes": len(found["episodes"]),
        "was_interrupted": found["was_interrupted"],
        **{name: found[name] for name in ("measured",) if name in found},
    }


def _write_film(folder: Path, parts: "Parts", robot: Films) -> str | None:
    """Draw the last seconds; each frame says what was executed next."""
    from vivace.eval.simulation.video import caption, write_video

    executed = parts.recorder.film
    first = parts.robot.told - len(executed)
    hz = parts.command.rate_hz
    try:
        film = robot.film()
    except RuntimeError as error:
        console.print(f"no film: {error}", style="yellow", highlight=False, markup=False)
        return None
    frames = [
        caption(frame, parts.bundle.name, executed[number - first][0].value, number, hz)
        for number, frame in film
        if number >= first
    ]
    if not frames:
        return None
    write_video(folder / "run.mp4", frames, robot.film_fps)
    return "run.mp4"


def _ms(time_s: float | None) -> float | None:
    return None if time_s is None else round(1e3 * time_s, 3)
