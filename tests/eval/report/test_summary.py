"""What is said of runs: no percentile beyond the measurements, and what a ladder may know."""

import io

import pytest
from rich.console import Console

from vivace.accel.variant import Variant
from vivace.eval.measure.trials import Trial, quiet_p99
from vivace.eval.report.stage_table import stage_rows, stage_table
from vivace.eval.report.summary import run_summary, table
from vivace.eval.simulation.episode import EpisodeResult
from vivace.eval.simulation.latency_model import BurstyLatency, ConstantLatency, MeasuredLatency, TraceLatency
from vivace.policies.errors import BadSetting


def episode(latencies_s) -> EpisodeResult:
    return EpisodeResult(
        seed=1, success=True, steps=10, time_to_success_s=0.5,
        ticks={"chunk": 10, "stale": 0, "fallback": 0}, deadline_misses=0, interventions=0,
        latencies_s=tuple(latencies_s), request_ticks=tuple(range(len(latencies_s))), seam_jumps=(),
        inner_jumps=(), choices={}, timeline="c" * 10, records=(),
    )  # fmt: skip


def summary(latency, ladder=()):
    n = Trial(Variant("plain", "as trained"), None, latency, ladder).n_measurements
    run = {"name": "plain", "label": "as trained", "colour": "#000", "gflop": None, "n_measurements": n}
    return run_summary(run, [episode([0.1] * 106)], 20.0)


def told(entry) -> str:
    rates = {"control_hz": 20.0, "physics_hz": 400.0, "trained_hz": 80.0}
    environment = {"task": "push", "mode": "sync", **rates}
    results = {"environment": environment, "runs": [entry], "comparisons": [], "left_out": {}}
    out = io.StringIO()
    Console(file=out, width=160).print(table(results))
    return out.getvalue()


def test_percentiles_count_measurements_not_draws():
    few = summary(MeasuredLatency(samples_s=(0.1,) * 5))
    assert (few["latency"]["n"], few["chunks"]) == (5, 106)
    assert (few["latency"]["p50_s"], few["latency"]["p90_s"], few["latency"]["p99_s"]) == (0.1, None, None)
    assert "100 / –" in told(few)
    assert "[ms]" in told(few), "a unit is no markup"
    assert "push at 20 Hz (physics 400 Hz, policy trained at 80 Hz), sync" in told(few)
    enough = summary(MeasuredLatency(samples_s=(0.1,) * 100))
    assert (enough["latency"]["n"], enough["latency"]["p99_s"]) == (100, 0.1)
    assert "100 / 100" in told(enough)


def test_a_ladder_knows_as_much_as_the_plan_it_knows_least_of(tmp_path):
    plans = tuple(Trial(Variant(f"{n}", f"{n}"), None, BurstyLatency(samples_s=(0.1,) * n)) for n in (100, 7))
    assert summary(plans[0].latency, plans)["latency"]["n"] == 7
    (tmp_path / "trace.json").write_text("[0.1, 0.2, 0.3]")
    assert summary(TraceLatency(path=str(tmp_path / "trace.json")))["latency"]["n"] == 3
    assert summary(ConstantLatency(seconds=0.1))["latency"]["n"] == 106, "a rule is not measured"


def test_a_ladder_refuses_plans_without_a_p99():
    assert quiet_p99(MeasuredLatency(samples_s=(0.1,) * 100, scale=2.0)) == pytest.approx(0.2)
    with pytest.raises(BadSetting, match="has 99 measurements; 100 are needed: raise --eval.timed_s"):
        quiet_p99(MeasuredLatency(samples_s=(0.1,) * 99))
    with pytest.raises(BadSetting, match="chosen by measured latencies"):
        quiet_p99(ConstantLatency(seconds=0.1))


def test_stages_are_told_of_the_rows_that_have_some():
    rows = [
        {"label": "as trained", "latency_s": 0.1, "stages_s": {"prepare": 0.01, "denoise": 0.09}},
        {"label": "tokens", "latency_s": 0.2, "stages_s": {"prepare": 0.02, "decode": 0.18}},
        {"label": "a bundle", "latency_s": 0.05, "stages_s": {}},
        {"label": "of an earlier version", "latency_s": 0.05},
    ]
    head, cells = stage_rows(rows)
    assert head == ("plan", "prepare [ms]", "denoise [ms]", "decode [ms]", "whole [ms]")
    assert cells == [("as trained", "10.0", "90.0", "–", "100.0"), ("tokens", "20.0", "–", "180.0", "200.0")]
    out = io.StringIO()
    Console(file=out, width=160).print(stage_table(rows))
    assert "prepare [ms]" in out.getvalue()
