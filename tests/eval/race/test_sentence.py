"""Every case of the one sentence, word by word."""

from dataclasses import replace

from vivace.eval.measure.statistics import PairedDifference
from vivace.eval.race.sentence import Found, Success, Timed, sentence, too_slow

TRAINED = Timed(label="as trained", tail_s=0.4121, action_error=0.0)
PLAN = Timed(label="DPM-Solver++ 4 steps", tail_s=0.038, action_error=0.0312)
PAIR = PairedDifference(100, 2, 3, -0.01, (-0.052, 0.033), 1.0)
FOUND = Found(
    budget="20 Hz",
    trained=TRAINED,
    plan=PLAN,
    success=Success(trained=93, planned=92, n=100, difference=PAIR),
    useless=("block cache", "forecast"),
)


def test_a_plan_that_a_search_found() -> None:
    assert sentence(FOUND) == (
        "20 Hz is kept: 412 → 38 ms p99, success 93 of 100 as trained, 92 planned (-1, -5 … +3 points); "
        "DPM-Solver++ 4 steps did it, block cache, forecast added nothing"
    )


def test_no_loss() -> None:
    pair = PairedDifference(100, 0, 0, 0.0, (-0.019, 0.019), 1.0)
    found = replace(FOUND, success=Success(trained=100, planned=100, n=100, difference=pair), useless=())
    assert sentence(found) == (
        "20 Hz is kept: 412 → 38 ms p99, success 100 of 100 as trained, 100 planned (+0, -2 … +2 points); "
        "DPM-Solver++ 4 steps did it"
    )


def test_a_plan_that_met_more_episodes_than_as_trained() -> None:
    few = replace(PAIR, n=10)
    found = replace(FOUND, success=Success(trained=0, planned=9, difference=few, n=200, solved=190))
    assert "success 0 of 10 as trained, 9 planned (" in sentence(found)
    assert " points), 190 of 200 in all; " in sentence(found)


def test_a_baseline_that_won_the_race() -> None:
    found = replace(FOUND, is_baseline=True, useless=("block cache",))
    assert sentence(found).endswith("; DPM-Solver++ 4 steps alone did it, block cache added nothing")


def test_a_baseline_that_the_winner_did_not_hold_against() -> None:
    found = replace(FOUND, is_baseline=True, beaten="block cache on 16 steps", useless=())
    assert sentence(found).endswith(
        "; DPM-Solver++ 4 steps alone did it (block cache on 16 steps won the race and did not hold on fresh "
        "episodes)"
    )


def test_as_trained_that_failed_is_told() -> None:
    """While it was timed, so that its latency is not known, or in its episodes."""
    raised = "RuntimeError: out of memory"
    found = replace(FOUND, success=Success(planned=92, n=100), trained_failed=raised, useless=())
    assert sentence(found) == (
        "20 Hz is kept: 412 → 38 ms p99, success 92 of 100 planned (as trained it failed: RuntimeError: out "
        "of memory); DPM-Solver++ 4 steps did it"
    )
    assert sentence(replace(found, trained=None)).startswith("20 Hz is kept: 38 ms p99, success 92 of 100")


def test_recorded_data_alone() -> None:
    assert sentence(replace(FOUND, success=None)) == (
        "20 Hz is kept: 412 → 38 ms p99, actions 0.031 from those as trained (success was not judged, for no "
        "world was named); DPM-Solver++ 4 steps did it, block cache, forecast added nothing"
    )


def test_recorded_data_alone_and_actions_that_nobody_can_compare() -> None:
    found = replace(FOUND, success=None, plan=replace(PLAN, action_error=None), useless=())
    assert "ms p99, actions that cannot be compared (success was not judged" in sentence(found)


def test_nothing_helped() -> None:
    found = replace(FOUND, plan=replace(TRAINED, tail_s=0.0301), is_trained=True)
    assert sentence(found) == (
        "20 Hz is kept as trained: 30 ms p99, success 92 of 100; nothing that was tried did better"
    )
    assert sentence(replace(found, success=None)) == (
        "20 Hz is kept as trained: 30 ms p99, success was not judged, for no world was named; nothing that "
        "was tried did better"
    )


def test_tails_of_different_percentiles_are_told_apart() -> None:
    found = replace(FOUND, trained=replace(TRAINED, percent=90.0))
    assert "20 Hz is kept: 412 ms p90 → 38 ms p99, success" in sentence(found)


def test_a_budget_that_nothing_keeps() -> None:
    assert too_slow("20 Hz", 0.05, replace(PLAN, tail_s=0.0612)) == (
        "no plan keeps 20 Hz, which leaves a chunk 50.0 ms: the fastest, DPM-Solver++ 4 steps, takes 61.2 ms "
        "p99, with actions 0.031 from those as trained; no plan was written"
    )
    assert "takes 61.2 ms p99; no plan was written" in too_slow(
        "50 ms", 0.05, replace(PLAN, tail_s=0.0612, action_error=None)
    )
