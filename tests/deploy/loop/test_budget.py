"""Deadlines, the latency to expect and the ladder of plans."""

import pytest

from vivace.deploy.loop.budget import LatencyBudget, Rung
from vivace.policies.errors import BadSetting

LADDER = (Rung("best", 0.3), Rung("fastest", 0.1), Rung("odd", 0.2))


def test_the_best_plan_that_fits_is_chosen_or_else_the_fastest():
    budget = LatencyBudget(10, LADDER)
    assert [budget.choose(left) for left in (1.0, 0.3, 0.25, 0.1, 0.05, 0.0)] == (
        ["best", "best", "fastest", "fastest", "fastest", "fastest"]
    )
    assert LatencyBudget(10).choose(1.0) is None


def test_a_better_plan_is_taken_only_after_it_has_fitted_for_a_while():
    budget = LatencyBudget(10, LADDER, patience=3)
    left = (0.1, 0.3, 0.3, 0.1, 0.3, 0.3, 0.3, 0.3, 0.1)
    assert [budget.choose(time_left_s) for time_left_s in left] == (
        ["fastest"] * 6 + ["best", "best", "fastest"]  # the shortage at the fourth counts from anew
    )


def test_chunks_that_take_longer_than_measured_make_every_plan_slower_for_a_while():
    budget = LatencyBudget(10, LADDER, window=2, patience=1)
    assert budget.choose(0.5) == "best"
    budget.arrive(0.6)  # twice its p99
    assert budget.load == 2.0
    assert budget.choose(0.5) == "fastest"  # best would take 0.6
    budget.arrive(0.1)
    assert budget.choose(0.5) == "fastest"
    budget.arrive(0.05)  # the slow one is forgotten, and quick ones do not count below 1
    assert budget.load == 1.0
    assert budget.choose(0.5) == "best"


def test_a_ladder_names_a_plan_once():
    with pytest.raises(BadSetting, match=r"plans \['best', 'best'\]; each may be there once"):
        LatencyBudget(10, (Rung("best", 0.3), Rung("best", 0.1)))


def test_a_deadline_is_missed_once():
    budget = LatencyBudget(10)
    budget.wait(7)  # nothing asked for
    budget.ask(due_tick=3)
    budget.wait(2)
    assert budget.misses == 0
    for tick in (3, 4, 5):
        budget.wait(tick)
    assert budget.misses == 1
    budget.arrive(0.6)
    budget.wait(9)
    assert budget.misses == 1


def test_a_chunk_in_time_misses_nothing():
    budget = LatencyBudget(10)
    budget.ask(due_tick=3)
    budget.arrive(0.2)
    budget.wait(3)
    assert budget.misses == 0


def test_the_slowest_of_the_last_few_is_expected():
    budget = LatencyBudget(10, window=3)
    expected = [budget.expected_ticks]
    for latency_s in (0.0, 0.05, 0.1, 0.91, 0.1, 0.1, 0.1, 0.3):
        budget.arrive(latency_s)
        expected.append(budget.expected_ticks)
    assert expected == [0, 0, 1, 1, 10, 10, 10, 1, 3]


@pytest.mark.parametrize("hz", [3, 7, 10, 20, 30, 50, 1000])
def test_whole_ticks_are_not_rounded_up(hz):
    for ticks in range(1, 50):
        budget = LatencyBudget(hz)
        budget.arrive((1000 + ticks) * budget.period_s - 1000 * budget.period_s)
        assert budget.expected_ticks == ticks


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(BadSetting, match="control_hz"):
        LatencyBudget(bad)
    with pytest.raises(BadSetting, match="plan 'x' has p99_s"):
        Rung("x", bad)


def test_an_empty_window_is_refused():
    with pytest.raises(BadSetting, match="window=0"):
        LatencyBudget(10, window=0)
