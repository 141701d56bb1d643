"""Rows of the table of plans: everything that was timed in the same rounds is held against the same."""

from dataclasses import replace

import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.accel.variant import Variant
from vivace.eval.measure.action_error import sample_all
from vivace.eval.measure.pareto import pareto_row, speed_row
from vivace.policies.execution import as_trained, launched
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_dp_transformer


def test_who_stands_in_the_same_rounds_is_held_against_the_plain_loop_and_lerobots_own_chunk():
    times = {"plain": [0.4, 0.4, 0.4], "lerobot": [0.5, 0.5, 0.5], "ort:bundle": [0.1, 0.1, 0.1]}
    row = speed_row(times, "ort:bundle")
    assert row["latency_s"] == 0.1
    assert row["ratio"] == pytest.approx(4)
    assert row["over_lerobot"] == pytest.approx(5)
    del times["lerobot"]
    assert "over_lerobot" not in speed_row(times, "ort:bundle")


def test_what_launches_otherwise_has_the_error_and_the_work_of_what_it_was_made_of():
    staged = stage(tiny_dp_transformer())
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    data = CalibrationData({"observation.state": torch.randn(2, 2, 5)}, ((1, 0), (2, 0)))
    plan = calibrate(staged, mark, data, [("block_cache", {"method": "uniform", "updates": 2})])
    cached, plain = accelerate(staged, plan), sample_all(as_trained(staged), data)
    times = {"plain": [0.4], "cached": [0.2]}

    def broken(*args):
        raise RuntimeError("its graphs are of one chunk at a time")

    rows = [
        pareto_row(Variant("cached", "cached"), run, times, plain, data)
        for run in (cached, replace(launched(cached, call=broken), plan=plan))
    ]
    assert rows[0] == rows[1]
    assert rows[0]["action_error"] > 0
