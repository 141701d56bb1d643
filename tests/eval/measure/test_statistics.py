"""Statistics against published values, other implementations and hand-worked tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from vivace.eval.measure.statistics import (
    curve_area,
    mcnemar,
    paired_difference,
    percentile,
    percentiles,
    ratio_of_medians,
    wilson_interval,
)
from vivace.policies.errors import BadSetting

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [
        (0, 10, (0.0, Z**2 / (10 + Z**2))),
        (10, 10, (10 / (10 + Z**2), 1.0)),
        (8, 10, (0.4901625, 0.9433178)),
        (50, 100, (0.4038315, 0.5961685)),
    ],
)
def test_wilson_interval_has_known_values(successes, n, interval):
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=1e-7)


def test_wilson_interval_equals_scipy_and_stays_in_range():
    assert wilson_interval(0, 0) == (0, 1)
    for n in range(1, 40):
        for successes in range(n + 1):
            low, high = wilson_interval(successes, n)
            assert 0 <= low < high <= 1
            assert (low, high) == pytest.approx(binomtest(successes, n).proportion_ci(method="wilson"))
    assert wilson_interval(5, 10, confidence=0.99)[0] < wilson_interval(5, 10)[0]


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)  # at most 1 of 6 heads, both sides
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    for gained in range(12):
        for lost in range(gained + 1, 12):
            assert mcnemar(gained, lost) == pytest.approx(2 * binom.cdf(gained, gained + lost, 0.5))


def test_paired_difference_of_a_hand_worked_table():
    first = dict(enumerate([True] * 5 + [False] * 5))
    second = dict(enumerate([True] * 4 + [False] + [True] * 3 + [False] * 2))
    found = paired_difference(first | {77: True}, second | {88: True})  # unshared seeds do not count
    assert (found.n, found.gained, found.lost) == (10, 3, 1)
    assert found.difference == pytest.approx(0.2)
    # half a pair more in each of four cells: n 12, gained 3.5, lost 1.5
    half = Z * np.sqrt(3.5 + 1.5 - (3.5 - 1.5) ** 2 / 12) / 12
    assert found.interval == pytest.approx((2 / 12 - half, 2 / 12 + half))
    assert found.interval == pytest.approx((-0.186, 0.520), abs=1e-3)
    assert found.p_value == pytest.approx(2 * (1 + 4) / 2**4)


def test_paired_difference_changes_sign_with_its_arguments():
    rng = np.random.default_rng(0)
    first, second = ({i: bool(rng.random() < p) for i in range(40)} for p in (0.3, 0.8))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.difference == -back.difference > 0
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert there.p_value == back.p_value < 0.01


def test_equal_runs_still_have_an_interval():
    runs = dict.fromkeys(range(20), True)
    found = paired_difference(runs, runs)
    assert (found.difference, found.p_value) == (0, 1)
    assert found.interval == pytest.approx((-Z / 22, Z / 22))


def test_the_interval_of_one_pair_stays_in_range():
    assert paired_difference({0: False}, {0: True}).interval[1] == 1


def test_runs_without_a_shared_seed_are_refused():
    with pytest.raises(BadSetting, match="share no seed"):
        paired_difference({1: True}, {2: True})


def test_percentiles_of_an_even_ramp():
    found = percentiles(np.random.default_rng(0).permutation(101).tolist())
    assert found.pop("p99.9_s") is None
    assert found == pytest.approx(
        {
            "p50_s": 50,
            "p90_s": 90,
            "p95_s": 95,
            "p99_s": 99,
            "mean_s": 50,
            "jitter_s": np.sqrt((101**2 - 1) / 12),
            "n": 101,
        }
    )
    with pytest.raises(BadSetting, match="no latencies"):
        percentiles([])


def test_draws_of_five_measurements_are_five_measurements():
    found = percentiles([0.1, 0.2, 0.3, 0.4, 0.5] * 21, n_measured=5)
    assert found["n"] == 5
    assert [found[f"p{p}_s"] for p in ("50", "90", "95", "99", "99.9")] == [0.3, None, None, None, None]
    assert percentiles([0.1] * 5, n_measured=100)["n"] == 5, "no draw, no measurement"
    assert percentile([0.1] * 9, 10) is None
    assert percentile([0.1] * 10, 10) == 0.1


def test_the_area_under_a_straight_line_is_its_middle():
    at = [0.7, 0.1, 0.5, 0.2]  # uneven and out of order
    assert curve_area(at, [0.9 - x for x in at]) == pytest.approx(0.9 - 0.4)
    assert curve_area([5.0], [0.3]) == 0.3
    assert curve_area([0, 1, 3], [0, 1, 1]) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0, 2.0], [0.5]), ([1.0, 1.0], [0.5, 0.6])])
def test_bad_curves_are_refused(x, y):
    with pytest.raises(BadSetting, match="one rate each for one or more distinct values"):
        curve_area(x, y)


def test_ratio_of_medians_of_a_hand_worked_table():
    found = ratio_of_medians([1, 2, 3, 4, 100], [1, 1, 1, 1, 1])
    assert found.ratio == 3
    assert found.mad == 1  # 2, 1, 0, 1, 97 away from 3
    assert 1 <= found.interval[0] <= 3 <= found.interval[1] <= 100


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_what_slows_both_in_a_round_does_not_widen_the_interval(second_s):
    found = ratio_of_medians([2 * t for t in second_s], second_s, n_resamples=50)
    assert found.ratio == pytest.approx(2)
    assert found.interval == pytest.approx((2, 2))
    assert found.mad == pytest.approx(0)


def test_ratio_of_medians_is_repeatable_and_narrows_with_more_rounds():
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(0.7, 0.3, 400), rng.lognormal(0, 0.3, 400)
    few, many = ratio_of_medians(first[:20], second[:20]), ratio_of_medians(first, second)
    assert many == ratio_of_medians(first, second)
    assert np.diff(many.interval) < np.diff(few.interval) / 2
    assert many.interval[0] < np.exp(0.7) < many.interval[1]


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0, 2.0], [1.0])])
def test_uneven_rounds_are_refused(first, second):
    with pytest.raises(BadSetting, match="the same number, at least 1, is needed"):
        ratio_of_medians(first, second)
