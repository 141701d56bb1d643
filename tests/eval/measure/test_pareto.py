"""Rows of the table of plans: everything that was timed in the same rounds is held against the same."""

import pytest

from vivace.eval.measure.pareto import speed_row


def test_who_stands_in_the_same_rounds_is_held_against_the_plain_loop_and_lerobots_own_chunk():
    times = {"plain": [0.4, 0.4, 0.4], "lerobot": [0.5, 0.5, 0.5], "ort:bundle": [0.1, 0.1, 0.1]}
    row = speed_row(times, "ort:bundle")
    assert row["latency_s"] == 0.1
    assert row["ratio"] == pytest.approx(4)
    assert row["over_lerobot"] == pytest.approx(5)
    del times["lerobot"]
    assert "over_lerobot" not in speed_row(times, "ort:bundle")
