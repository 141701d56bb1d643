"""Pieces of the report whose answers can be worked out by hand."""

import json

import numpy as np

from vivace.eval.report.figures import curve_figure, latency_figure, seam_figure, timeline_figure
from vivace.eval.simulation.trace import stretches, write_trace
from vivace.eval.simulation.video import caption, side_by_side

EPISODE = {
    "success": True, "timeline": "ffccs", "request_ticks": [0, 3], "latencies_s": [0.1, 0.05], "seed": 1
}  # fmt: skip


def test_stretches_of_a_timeline():
    assert stretches("ffccs") == [("fallback", 0, 2), ("chunk", 2, 2), ("stale", 4, 1)]
    assert stretches("") == []


def test_the_trace_says_when_the_policy_thought_and_what_was_executed(tmp_path):
    write_trace(tmp_path / "trace.json", {"plain": EPISODE}, control_hz=20)
    slices = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in slices] == [
        ("fallback", 0, 100_000),
        ("chunk", 100_000, 100_000),
        ("stale", 200_000, 50_000),
        ("inference", 0, 100_000),
        ("inference", 150_000, 50_000),
    ]


def test_films_are_joined_and_the_shorter_one_waits():
    first = [np.full((4, 4, 3), value, np.uint8) for value in (1, 2, 3)]
    second = [np.full((4, 4, 3), value, np.uint8) for value in (7, 8)]
    joined = side_by_side({"a": first, "b": second})
    assert [frame[0, [0, 7], 0].tolist() for frame in joined] == [[1, 7], [2, 8], [3, 8]]
    framed = caption(np.zeros((64, 200, 3), np.uint8), "accelerated", "fallback", 3, 20)
    assert framed.shape == (90, 200, 3)
    assert framed[-1, 0].tolist() == [213, 60, 60]


def test_figures_show_every_run():
    run = {
        "name": "plain", "label": "as trained", "interval": (0.1, 0.6), "successes": 3, "n": 10,
        "latency": {"p50_s": 1.0}, "latencies_s": [1.0, 1.1],
    }  # fmt: skip
    points = [
        {"latency_s": 0.0, "successes": 9, "n": 10, "seam_jump": 0.2, "inner_jump": 0.1},
        {"latency_s": 1.0, "successes": 3, "n": 10, "seam_jump": 0.4, "inner_jump": None},
    ]
    line = {"run": "plain", "mode": "sync", "label": "as trained", "points": points, "area": 0.6}
    curve = curve_figure({"plain": line}, [run])
    assert list(curve.data[1].x) == [0, 1000]
    assert list(curve.data[1].y) == [90, 30]
    seams = seam_figure({"plain": line})
    assert [list(trace.y) for trace in seams.data] == [[0.2, 0.4], [0.1, None]]
    timeline = timeline_figure({"plain": ("as trained", EPISODE)}, 20)
    assert [(bar.base, bar.x[0], bar.name) for bar in timeline.data] == [
        (0.0, 0.1, "fallback"),
        (0.1, 0.1, "fresh"),
        (0.2, 0.05, "stale"),
    ]
    low, high = latency_figure([run], 0.05).layout.xaxis.range
    assert 10**low < 50 < 1100 < 10**high
