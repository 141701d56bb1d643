"""Deadlines, the latency to expect and the ladder of plans."""

import math

import pytest

from vivace.deploy.loop.budget import LatencyBudget, Rung, read_rung
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


def test_a_plan_that_says_its_load_is_taken_from_there_on_and_not_before():
    budget = LatencyBudget(10, (Rung("fine", 0.3), Rung("coarse", 0.1, from_load=1.7)), window=1, patience=2)
    assert budget.choose(0.01) == "fine"  # though it will be late
    budget.arrive(0.5)  # 1.67 times as long
    assert budget.choose(1.0) == "fine"
    budget.arrive(0.54)
    assert budget.choose(1.0) == "coarse"  # though there is time
    budget.arrive(0.1)
    assert budget.choose(1.0) == "coarse"
    assert budget.choose(1.0) == "fine"


def test_a_ladder_that_says_its_loads_asks_as_early_as_a_plan_alone():
    budget = LatencyBudget(10, (Rung("fine", 0.3), Rung("coarse", 0.1, from_load=1.7)))
    assert budget.lead_ticks == 0
    budget.choose(1.0)
    budget.arrive(0.15)
    assert budget.lead_ticks == budget.expected_ticks == 2


@pytest.mark.parametrize("loads", [(1.5, 2.0), (None, 2.0, 1.5), (None, None, 2.0), (None, 2.0, 2.0)])
def test_loads_are_said_by_all_but_the_first_and_ascend(loads):
    ladder = tuple(Rung(f"plan {i}", 0.1, load) for i, load in enumerate(loads))
    with pytest.raises(BadSetting, match="needed: none for the first, and a larger one for each after it"):
        LatencyBudget(10, ladder)


@pytest.mark.parametrize("load", [1.0, 0.5, math.inf])
def test_a_load_is_above_that_of_quiet_times(load):
    with pytest.raises(BadSetting, match="above 1 is needed"):
        Rung("x", 0.1, load)


@pytest.mark.parametrize(
    ("text", "rung"),
    [
        ("ddim-4@1.7", ("ddim-4", 1.7)),
        ("ddim-4", ("ddim-4", None)),
        ("out/bundle@home", ("out/bundle@home", None)),
        ("out/bundle@home#fast@2", ("out/bundle@home#fast", 2.0)),
    ],
)
def test_a_rung_as_one_types_it(text, rung):
    assert read_rung(text) == rung
