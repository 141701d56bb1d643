"""The report of `vivace run`."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from vivace.eval.report.page import cards_row, figure, header, section, table, video
from vivace.eval.terminal import lateness, lateness_head, milliseconds

_NAMES = {
    "latency": "inference, from asking to the chunk",
    "jitter": "tick late, after its deadline",
    "work": "tick's work, until the robot was told",
}
_COLOURS = {"latency": "#0b8f7d", "jitter": "#d9822b", "work": "#4c78c9"}
_PERCENTILES = ("p50_s", "p90_s", "p95_s", "p99_s", "p99.9_s", "max_s")
_SHOWN_EVENTS = 200


def run_page(folder: Path, results: Mapping[str, Any]) -> tuple[str, str]:
    """Return title and body."""
    run, settings = results["run"], results["settings"]
    robot = " ".join(filter(None, results["robot"].values()))
    title = f"{results['bundle']['name']} on {robot}"
    lead = (
        f"{results['duration_s']:.0f} s of wall-clock time at {settings['control_hz']:g} Hz "
        f"({settings['mode']} mode), inference in a process of its own."
    )
    parts = [header("run", title, lead), _cards(results)]
    if results.get("video"):
        parts.append(
            section("The last seconds", "The bar says what was executed.", video(folder / results["video"]))
        )
    parts.append(
        section(
            "Times",
            "Percentiles are right to 1 %, and there as far as n reaches. "
            "Dotted: the control period. Tick by tick: run.jsonl, and "
            "trace.json for ui.perfetto.dev.",
            _times_table(run),
            figure(times_figure(results["histograms"], 1 / settings["control_hz"])),
        )
    )
    parts.append(section("What was executed", _sources_text(results), _sources_table(run)))
    if "measured" in results:
        parts.append(_measured_section(results["measured"]))
    parts.append(section("What happened", _events_text(results), _events_table(results)))
    if results["realtime"]:
        rows = [
            (g["what"], "granted" if g["is_granted"] else f"refused: {g['why']}") for g in results["realtime"]
        ]
        parts.append(section("Asked of the system", "", table(("what", "outcome"), rows)))
    return title, "".join(parts)


def times_figure(histograms: Mapping[str, Any], period_s: float) -> go.Figure:
    """Distributions as steps over time, logarithmic; dotted: the control period."""
    drawn = go.Figure()
    for name, buckets in histograms.items():
        if not buckets:
            continue
        total = sum(count for _, _, count in buckets)
        drawn.add_bar(
            x=[500 * (low + high) for low, high, _ in buckets],
            y=[100 * count / total for _, _, count in buckets],
            width=[1e3 * (high - low) for low, high, _ in buckets],
            name=_NAMES[name],
            marker={"color": _COLOURS[name], "line": {"width": 0}},
        )
    drawn.add_vline(x=1e3 * period_s, line_dash="dot")
    drawn.update_xaxes(type="log", title="ms, log")
    drawn.update_yaxes(title="share of them [%]")
    drawn.update_layout(template="plotly_white", barmode="overlay", height=340, margin={"t": 20, "b": 40})
    return drawn


def _cards(results: Mapping[str, Any]) -> str:
    run, hz = results["run"], results["settings"]["control_hz"]
    late, period_ms = milliseconds(run["jitter"]["p99.9_s"], 2), 1e3 / hz
    p50, p99 = (milliseconds(run["latency"][key]) for key in ("p50_s", "p99_s"))
    seen = {"ticks": run["sources"], **{key: run[key] for key in ("deadline_misses", "chunks")}}
    mode = results["settings"]["mode"]
    chunks = f"{run['chunks']} chunks; {lateness_head(mode)}: {lateness(seen, mode, hz)}"
    return cards_row(
        [
            ("tick late, p99.9", f"{late} <small>ms</small>", f"of {period_ms:g} ms"),
            ("deadlines without a tick", f"{run['skipped_deadlines']}", f"beside {run['ticks']} ticks"),
            ("inference, p50 / p99", f"{p50} / {p99} <small>ms</small>", chunks),
            ("rate of fresh actions", f"{run['effective_hz']:.1f} <small>Hz</small>", f"of {hz:g} Hz"),
        ]
    )


def _times_table(run: Mapping[str, Any]) -> str:
    rows = [
        (label, *(milliseconds(run[name][key], 2) for key in _PERCENTILES), f"{run[name]['n']}")
        for name, label in _NAMES.items()
    ]
    return table(("", *(f"{key.removesuffix('_s')} [ms]" for key in _PERCENTILES), "n"), rows)


def _sources_text(results: Mapping[str, Any]) -> str:
    run, limits = results["run"], results["settings"].get("limits", "not known")
    depth = run["queue_depth"]
    return (
        "Fresh: an action as young as in a world that waits; stale: an older one; fallback: none was there, "
        f"or the watchdog held the robot. Actions left for later ticks: {depth['p50']} (median), "
        f"{'–' if depth['p1'] is None else depth['p1']} (1st percentile). "
        f"{run['guarded']} actions were changed or refused by the guard. Limits: {html.escape(limits)}."
    )


def _sources_table(run: Mapping[str, Any]) -> str:
    ticks = max(1, run["ticks"])
    found = {**run["sources"], **{f"watchdog: {name}": count for name, count in run["states"].items()}}
    return table(("", "ticks", "share"), [(name, f"{n}", f"{n / ticks:.1%}") for name, n in found.items()])


def _measured_section(measured: Mapping[str, Any]) -> str:
    """What was commanded beside what was recorded, of a robot that plays episodes back."""
    episodes = ", ".join(map(str, measured["episodes"]))
    text = (
        f"Episodes {episodes} of {html.escape(measured['recording'])} were played back, whatever was "
        f"commanded; {measured['actions']} commands beside the recorded actions, in the robot's units."
    )
    rows = [
        (name, *(f"{found[key]:.4g}" for key in ("mean", "largest", "spread")))
        for name, found in measured["difference"].items()
    ]
    head = ("", "mean difference", "largest", "standard deviation of what was recorded")
    return section("Commanded and recorded", text, table(head, rows) if rows else "")


def _events_text(results: Mapping[str, Any]) -> str:
    memory, log, worker = results["memory_mb"], results["log"], results["worker"]
    counts, ending = results["robot_failures"]["counts"], results["ending"]
    text = (
        f"The robot failed {sum(counts.values())} times, inference {worker['failures']} times. The worker "
        f"was replaced {worker['restarts']} times. The log dropped {log['dropped']} lines."
    )
    if ending["fault"] is not None:
        text += f" The run was ended by {ending['fault']['type']}: {ending['fault']['message']}."
    if memory:
        text += (
            f" Resident memory of the loop's process: {memory['first']:.0f} MB at first, "
            f"{memory['last']:.0f} MB at last, {memory['largest']:.0f} MB at most."
        )
    return text


def _events_table(results: Mapping[str, Any]) -> str:
    rows = []
    for event in results["events"][-_SHOWN_EVENTS:]:
        details = {k: v for k, v in event.items() if k not in ("kind", "event", "time_s")}
        text = ", ".join(f"{key}: {value}" for key, value in details.items())
        rows.append((f"{event['time_s']:.2f} s", event["event"], text))
    return table(("time", "what", ""), rows) if rows else ""
