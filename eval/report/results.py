"""What results.json says of how it was made, and the pages made from it."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.envs.registry import describe
from vivace.eval.machine import command as command_line
from vivace.eval.machine import commit, machine, versions
from vivace.eval.options import CommonOptions
from vivace.eval.output import write_json
from vivace.eval.report.report import write_report
from vivace.eval.simulation.trace import write_run_trace, write_trace

if TYPE_CHECKING:
    from vivace.policies.load import LoadedPolicy


def circumstances(kind: str, command: CommonOptions, loaded: "LoadedPolicy") -> dict[str, Any]:
    """What was measured, where, with which versions, and by which command."""
    spec = loaded.staged.spec
    return {
        "format": 1,
        "kind": kind,
        "command": command_line(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(loaded.placement, loaded.dtype),
        "seed": command.seed,
        "policy": {
            "path": command.policy.named,
            "type": spec.type,
            "parameters": sum(p.numel() for p in loaded.policy.parameters()),
            **loaded.as_trained.told,
            "horizon": spec.horizon,
            "n_action_steps": command.loop.n_action_steps or spec.n_action_steps,
            "weights": loaded.fingerprint.weights,
        },
        "environment": _environment(command, spec.control_hz),
    }


def _environment(command: CommonOptions, trained_hz: float | None) -> dict[str, Any]:
    """The world, as far as there is one."""
    env = command.env
    physics_hz = describe(env.type, env.tasks[0], **env.chosen()).physics_hz if env.is_named else None
    return {
        "type": env.type,
        "task": env.task,
        "control_hz": env.control_hz,
        "physics_hz": physics_hz,
        "trained_hz": trained_hz,
    }


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.json and the pages made from it."""
    write_json(folder / "results.json", results)
    write_pages(folder, results)


def write_pages(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write report.html and, of an evaluation or a run, trace.json; returns the report's path."""
    written = write_report(folder, results)
    if results["kind"] == "run" and (folder / "run.jsonl").is_file():
        write_run_trace(folder / "trace.json", folder / "run.jsonl", results["settings"]["control_hz"])
    if results["kind"] == "eval":
        seed = results["shown_seed"]
        shown = {r["name"]: next(e for e in r["episodes"] if e["seed"] == seed) for r in results["runs"]}
        write_trace(folder / "trace.json", shown, results["environment"]["control_hz"])
    return written
