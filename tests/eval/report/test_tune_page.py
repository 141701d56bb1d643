"""The page of a search: made of plain data, it says who was dropped, what held, and what ever helped."""

import json
from typing import Any

import pytest

from vivace.accel.registry import techniques
from vivace.eval.report.report import write_report
from vivace.eval.report.tune_page import front


def trial(key: str, kinds: list[str], p50_ms: float, error: float, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "label": f"candidate {key}",
        "candidate": {
            "requests": [[kind, {}] for kind in kinds],
            "origin": more.pop("origin", "search"),
        },
        "status": "raced",
        "stage": None,
        "reason": "",
        "latency": {"p50_s": p50_ms / 1e3},
        "action_error": error,
        "flops": 1000,
        "raced": [],
        "confirmed": [],
        **more,
    }


def solved(n: int, of: int) -> list[list[Any]]:
    return [[seed, seed < n] for seed in range(of)]


def confirmed(key: str, successes: int, is_plan: bool, lost_to: str = "") -> dict[str, Any]:
    return {
        "key": key,
        "label": f"candidate {key}",
        "latency_s": 0.04,
        "keeps_budget": True,
        "is_plan": is_plan,
        "successes": successes,
        "n": 100,
        "interval": (0.8, 0.9),
        "difference": 0.1,
        "difference_interval": (0.02, 0.18),
        "p_value": 0.02,
        "lost_to": lost_to,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    why = "solved 2 of 20 where candidate few solved 18"
    rows = [
        trial("plain", [], 400, 0.0, origin="as trained", raced=[]),
        trial("few", ["step_schedule"], 40, 0.1, origin="baseline", raced=solved(55, 60)),
        trial(
            "both", ["step_schedule", "block_cache"], 30, 0.4, raced=solved(2, 20), reason=why, stage="raced"
        ),
        trial("slow", ["forecast"], 300, 0.5, status="timed"),
        trial(
            "bad", ["guidance"], 0, 0.0, status="failed", stage="counted", reason="BadSetting: no such thing"
        ),
    ]
    del rows[-1]["latency"]
    latencies = {"latency": {"p50_s": 0.04}, "latency_as_trained": {"p50_s": 0.4}}
    success = {"success": {"successes": 92, "n": 100}, "success_as_trained": {"successes": 0, "n": 100}}
    return {
        "format": 1,
        "kind": "tune",
        "policy": {"path": "zoo/reach"},
        "sentence": "20 Hz is kept: 400 → 40 ms p99",
        "budget": {"told": "20 Hz, mode async"},
        "trials": rows,
        "measured": latencies | success,
        "winner": {"key": "few"},
        "race": {"ending": "its episodes are used up", "entrants": ["few", "both"]},
        "confirmed": [confirmed("few", 92, True), confirmed("both", 80, False, "it is no better")],
        "importance": {"work": {"step_schedule.n_steps": 0.9}, "action error": {"block_cache": 0.7}},
        "machine": {"device": "cpu"},
        "versions": {"vivace": "1"},
        "seed": 1,
        "command": "vivace tune",
    }


def test_it_says_who_was_dropped_what_held_and_what_helped(results, tmp_path):
    told = write_report(tmp_path, json.loads(json.dumps(results))).read_text()
    for words in (
        "20 Hz is kept: 400 → 40 ms p99",
        "solved 2 of 20 where candidate few solved 18",
        "its episodes are used up",
        "it is no better",
        "work: step_schedule.n_steps",
        "BadSetting: no such thing",
    ):
        assert words in told
    table = told[told.index("Did it ever help") : told.index("Confirmed on fresh episodes")]
    cells = [part.split("<td>")[1:] for part in table.split("<tr")[2:]]
    helped = {row[0].partition("<")[0]: [cell.partition("<")[0] for cell in row[1:]] for row in cells}
    labels = {technique.label: kind for kind, technique in techniques().items()}
    assert {labels[label]: cells for label, cells in helped.items()} == {
        "block_cache": ["1", "1", "yes", "no", "no"],
        "forecast": ["1", "1", "no", "no", "no"],
        "guidance": ["1", "0", "no", "no", "no"],
        "step_schedule": ["2", "2", "yes", "yes", "yes"],
    }


def test_a_search_on_recorded_data_has_no_race_and_says_that_nobody_judged(results, tmp_path):
    for name in ("race", "confirmed", "importance"):
        results.pop(name)
    for row in results["trials"]:
        row["raced"], row["confirmed"] = [], []
    told = write_report(tmp_path, results).read_text()
    assert "not judged" in told
    assert "The race" not in told
    assert "Confirmed" not in told


def test_a_search_that_found_no_plan_has_a_page(results, tmp_path):
    for name in ("race", "confirmed", "measured", "winner"):
        results.pop(name)
    assert "Did it ever help?" in write_report(tmp_path, results | {"plan": None}).read_text()


def test_what_failed_while_it_acted_is_named_one_by_one(results, tmp_path):
    failed = {"status": "failed", "reason": "RuntimeError: it broke"}
    results["trials"] += [
        trial("late", [], 40, 0.1, stage="raced", **failed),
        trial("later", [], 40, 0.1, stage="raced", **failed),
        trial("early", [], 40, 0.1, stage="counted", **failed),
        trial("earlier", [], 40, 0.1, stage="counted", **failed),
    ]
    told = write_report(tmp_path, results).read_text()
    table = told[told.index("How far they came") :]
    for words in ("candidate late<", "candidate later<", "candidate early and 1 more<"):
        assert words in table


def test_as_trained_that_failed_is_told_beside_the_plan(results, tmp_path):
    measured = results["measured"] | {"as_trained_failed": "RuntimeError: out of memory"}
    del measured["latency_as_trained"], measured["success_as_trained"]
    told = write_report(tmp_path, results | {"measured": measured}).read_text()
    assert told.count("as trained it failed: RuntimeError: out of memory") == 2


def test_a_front_has_what_nothing_beats_of_what_can_be_run():
    rows = [
        trial("e", [], 1, 0.0, status="failed", stage="raced"),
        trial("a", [], 10, 0.5),
        trial("b", [], 20, 0.1),
        trial("c", [], 30, 0.2),
        trial("d", [], 10, 0.5),
    ]
    assert front(rows, lambda row: -row["action_error"]) == {"a", "b", "d"}
    assert front(rows, lambda row: None) == set()
