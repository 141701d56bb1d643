"""Percentiles in fixed memory, against numpy's of all values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivace.deploy.telemetry.histogram import PERCENTILES, LatencyHistogram
from vivace.policies.errors import BadSetting


def filled(times, **options):
    histogram = LatencyHistogram(**options)
    for time_s in times:
        histogram.add(time_s)
    return histogram


@settings(max_examples=150, deadline=None)
@given(times=st.lists(st.floats(1e-6, 900), min_size=1, max_size=300), percent=st.floats(0, 100))
def test_percentiles_are_right_to_one_per_cent(times, percent):
    exact = np.percentile(times, percent, method="inverted_cdf")
    assert filled(times).percentile(percent) == pytest.approx(exact, rel=0.01 + 1e-9)


def test_the_tail_of_a_long_run():
    times = np.random.default_rng(0).lognormal(-5, 1, 50_000)
    summary = filled(times).summary()
    for p in PERCENTILES:
        assert summary[f"p{p:g}_s"] == pytest.approx(np.percentile(times, p), rel=0.015)
    assert summary["n"] == 50_000
    assert summary["mean_s"] == pytest.approx(times.mean())
    assert (summary["min_s"], summary["max_s"]) == (times.min(), times.max())


def test_memory_does_not_depend_on_what_is_added():
    histogram = LatencyHistogram()
    before = histogram._counts.nbytes
    for power in range(-20, 20):
        histogram.add(10.0**power)
    assert histogram._counts.nbytes == before < 20_000
    assert sum(count for _, _, count in histogram.buckets()) == 40


def test_times_beyond_the_ends_and_below_nothing():
    histogram = filled([-3.0, 0.0, 1e-9, 5e4])
    assert histogram.min_s == 0
    assert histogram.percentile(100) == pytest.approx(1e3, rel=0.05)
    assert histogram.max_s == 5e4
    assert histogram.percentile(50) <= 1e-6 * 1.02


def test_none_and_one():
    empty = LatencyHistogram().summary()
    assert {empty.pop(f"p{p:g}_s") for p in (50, 90, 95, 99, 99.9)} == {None}
    assert set(empty.values()) == {0}
    assert filled([0.25]).percentile(50) == 0.25


@pytest.mark.parametrize(("n", "last"), [(1, 50), (9, 50), (10, 90), (19, 90), (20, 95), (99, 95), (100, 99),
                                         (999, 99), (1000, 99.9)])  # fmt: skip
def test_percentiles_reach_as_far_as_the_times(n, last):
    summary = filled([0.01] * n).summary()
    known = [p for p in (50, 90, 95, 99, 99.9) if summary[f"p{p:g}_s"] is not None]
    assert known[-1] == last
    assert filled([0.01] * n).supported(last) == filled([0.01] * n).percentile(last)


def test_merging_is_adding_both():
    first, second = [0.1, 0.2, 0.4], [1.0, 2.0]
    merged = filled(first)
    merged.merge(filled(second))
    assert merged.summary() == filled(first + second).summary()


def test_buckets_cover_their_times():
    histogram = filled([0.01, 0.01, 3.0])
    assert [count for _, _, count in histogram.buckets()] == [2, 1]
    for (low, high, _), time_s in zip(histogram.buckets(), (0.01, 3.0), strict=True):
        assert low <= time_s < high


def test_errors():
    with pytest.raises(BadSetting, match="histogram from 2 s to 1 s"):
        LatencyHistogram(2, 1)
    with pytest.raises(BadSetting, match="time of nan s cannot be counted"):
        LatencyHistogram().add(float("nan"))
    with pytest.raises(BadSetting, match="percentile 101"):
        LatencyHistogram().percentile(101)
    with pytest.raises(BadSetting, match="different buckets cannot be merged"):
        LatencyHistogram().merge(LatencyHistogram(error=0.1))
