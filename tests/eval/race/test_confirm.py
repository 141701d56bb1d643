"""A winner is claimed only if it holds on fresh seeds against what anybody could have done."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vivace.eval.race.confirm import ConfirmRules, Contender, confirm, is_shown_worse
from vivace.eval.race.race import Play, Played, RaceRules, race
from vivace.policies.errors import BadSetting, NothingRuns

CACHE = Contender("cache", "a cache", 0.030)
FEWER = Contender("fewer", "DDIM 8 steps", 0.030)
TRAINED = Contender("trained", "as trained", 0.4, keeps_budget=False)
FRESH = range(1000, 1200)


def solving(solved: dict[str, Callable[[int], bool]]) -> Play:
    return lambda keys, seeds: Played({(key, seed): solved[key](seed) for key in keys for seed in seeds})


def failing(solved: dict[str, Callable[[int], bool]], who: Sequence[str], from_seed: int = 0) -> Play:
    """The same, but some raise from a seed on."""

    def play(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        fail = [key for key in keys if key in who and max(seeds) >= from_seed]
        played = solving(solved)([key for key in keys if key not in fail], seeds)
        return Played(played.outcomes, dict.fromkeys(fail, "ValueError: it broke"))

    return play


def first_of(n: int) -> Callable[[int], bool]:
    """Solves the first n of every hundred episodes."""
    return lambda seed: seed % 100 < n


def last_of(n: int) -> Callable[[int], bool]:
    """Solves the last n of every hundred episodes."""
    return lambda seed: seed % 100 >= 100 - n


def test_a_better_winner_is_the_plan() -> None:
    play = solving({"cache": first_of(90), "fewer": first_of(70), "trained": first_of(95)})
    found = confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules())
    assert found.has_held
    assert not found.lost_to
    assert found.against["fewer"].difference == pytest.approx(0.2)
    assert found.difference("trained").difference == pytest.approx(-0.05)
    assert [row["successes"] for row in found.rows()] == [180, 190, 140]
    assert [row["is_plan"] for row in found.rows()] == [True, False, False]


def test_a_winner_no_better_and_no_faster_than_fewer_steps_gives_way_to_them() -> None:
    play = solving({"cache": first_of(80), "fewer": first_of(80)})
    found = confirm(CACHE, [FEWER], FRESH, play, ConfirmRules())
    assert found.plan == FEWER
    told = "a cache is not faster and on 200 fresh episodes +0 points (-1 … +1) from DDIM 8 steps"
    assert found.lost_to == {"fewer": told}


def test_a_winner_as_good_and_faster_is_the_plan() -> None:
    fast = Contender("cache", "a cache", 0.029)
    play = solving({"cache": first_of(80), "fewer": first_of(80)})
    assert confirm(fast, [FEWER], FRESH, play, ConfirmRules()).has_held


def test_a_faster_winner_that_solves_less_gives_way() -> None:
    fast = Contender("cache", "a cache", 0.010)
    play = solving({"cache": first_of(75), "fewer": first_of(80)})
    assert confirm(fast, [FEWER], FRESH, play, ConfirmRules()).plan == FEWER


def test_the_best_of_the_simple_plans_is_taken() -> None:
    exact = Contender("exact", "exact work removed", 0.03)
    play = solving({"cache": first_of(50), "fewer": first_of(60), "exact": first_of(70)})
    found = confirm(CACHE, [FEWER, exact], FRESH, play, ConfirmRules())
    assert found.plan == exact
    assert set(found.lost_to) == {"fewer", "exact"}


def test_what_does_not_keep_to_the_budget_is_told_and_never_the_plan() -> None:
    play = solving({"cache": first_of(10), "trained": first_of(100)})
    found = confirm(CACHE, [TRAINED], FRESH, play, ConfirmRules())
    assert found.has_held
    assert found.difference("trained").difference == pytest.approx(-0.9)


def test_a_simple_plan_that_won_the_race_need_not_be_shown_better_than_another() -> None:
    """It claims nothing that took a search; of plans that anybody could have made the most successful one is
    the plan, where another, faster and less successful, took its place."""
    former = Contender("former", "the plan beside the checkpoint", 0.020)
    play = solving({"fewer": first_of(77), "former": last_of(70), "trained": first_of(2)})
    found = confirm(FEWER, [TRAINED, former, FEWER], FRESH, play, ConfirmRules())
    assert (found.plan, found.has_held, found.lost_to) == (FEWER, True, {})
    play = solving({"fewer": first_of(70), "former": last_of(77), "trained": first_of(2)})
    found = confirm(FEWER, [TRAINED, former, FEWER], FRESH, play, ConfirmRules())
    assert (found.plan, found.has_held, set(found.lost_to)) == (former, False, {"former"})
    play = solving({"fewer": first_of(77), "former": last_of(77), "trained": first_of(2)})
    assert confirm(FEWER, [former, FEWER], FRESH, play, ConfirmRules()).plan == former, "as good, and faster"


def test_a_simple_plan_that_won_the_race_is_the_plan() -> None:
    play = solving({"fewer": first_of(80)})
    found = confirm(FEWER, [FEWER], FRESH, play, ConfirmRules())
    assert found.plan == FEWER
    assert [row["key"] for row in found.rows()] == ["fewer"]


def test_a_technique_that_wins_on_the_search_seeds_by_chance_is_not_claimed() -> None:
    """Twelve caches that are no better than fewer steps: one wins the race by luck, and holds rarely."""
    claimed = raced_ahead = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        keys = ["fewer", *(f"cache-{i}" for i in range(12))]
        lucky = {key: set(np.flatnonzero(random.random(1200) < 0.6).tolist()) for key in keys}
        play = solving({key: found.__contains__ for key, found in lucky.items()})
        won = race(keys, range(40), play, RaceRules())
        ahead = sum(won.outcomes[won.leader].values()) - sum(won.outcomes["fewer"].values())
        raced_ahead += won.leader != "fewer" and ahead >= 2
        found = confirm(Contender(won.leader, "a cache", 0.03), [FEWER], FRESH, play, ConfirmRules())
        claimed += found.plan.key != "fewer"
    assert raced_ahead > 150  # the trap is there
    assert claimed <= 200 * 0.025 + 3 * np.sqrt(200 * 0.025)


def test_what_is_known_is_not_run_again_and_time_ends_it() -> None:
    played = []

    def play(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        played.extend((key, seed) for key in keys for seed in seeds)
        return Played({(key, seed): True for key in keys for seed in seeds})

    known = {"cache": {seed: True for seed in FRESH[:10]}}
    found = confirm(CACHE, [FEWER], FRESH, play, ConfirmRules(), known, is_over=lambda: len(played) >= 80)
    assert found.n == 50
    assert len(played) == len(set(played)) == 90
    assert all(seed not in known["cache"] for key, seed in played if key == "cache")


SOLVED = {"cache": first_of(90), "second": first_of(85), "fewer": first_of(70), "trained": first_of(95)}
SECOND = Contender("second", "another cache", 0.028)


@pytest.mark.parametrize("seed", [0, 1105], ids=["at once", "in the middle"])
def test_a_winner_that_raises_loses_its_place_to_the_next_of_the_race(seed: int) -> None:
    play = failing(SOLVED, ["cache"], seed)
    found = confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules(), others=[SECOND])
    assert found.winner == found.plan == SECOND
    assert found.raised == {"cache": "ValueError: it broke"}
    assert [row["label"] for row in found.rows()] == ["another cache", "as trained", "DDIM 8 steps"]
    assert found.n == 200
    alone = Contender("cache", "a cache", 0.03)
    found = confirm(alone, [TRAINED], FRESH, play, ConfirmRules(), others=[SECOND])
    assert (found.winner, found.n) == (SECOND, 200), "where nothing simple keeps the budget, too"


def test_who_stands_in_and_is_simple_has_to_be_shown_better_than_nobody() -> None:
    """Which baseline is compared with others is chosen before the winner raises; this one is another."""
    few = Contender("few", "DDIM 4 steps", 0.02, is_simple=True)
    slow = Contender("fewer", "DDIM 8 steps", 0.030, is_simple=True)
    play = failing({"cache": first_of(90), "few": first_of(80), "fewer": first_of(80)}, ["cache"])
    found = confirm(CACHE, [slow], FRESH, play, ConfirmRules(margin=0.001), others=[few])
    assert found.winner == found.plan == few
    assert not found.lost_to


def test_a_simple_plan_that_raises_is_told_and_compared_with_nobody() -> None:
    play = failing(SOLVED, ["trained"])
    found = confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules())
    assert found.has_held
    assert set(found.raised) == {"trained"}
    assert [row["label"] for row in found.rows()] == ["a cache", "DDIM 8 steps"]


def test_where_all_that_stayed_raise_there_is_no_plan() -> None:
    play = failing(SOLVED, ["cache", "second"])
    with pytest.raises(NothingRuns, match="none of those that stayed in the race.*a cache: ValueError"):
        confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules(), others=[SECOND])


def test_a_confirmation_needs_episodes_and_a_winner_in_the_budget() -> None:
    for winner, seeds in ((CACHE, range(0)), (TRAINED, FRESH)):
        with pytest.raises(BadSetting, match="to be confirmed on"):
            confirm(winner, [], seeds, solving({}), ConfirmRules())


@pytest.mark.parametrize("rules", [{"margin": 0.0}, {"confidence": 1.0}, {"seeds_at_once": 0}], ids=str)
def test_rules_that_cannot_be_kept(rules: dict[str, float]) -> None:
    with pytest.raises(BadSetting, match="a confirmation with"):
        ConfirmRules(**rules)


def test_what_takes_too_long_to_be_the_plan_meets_as_many_as_time_allows() -> None:
    """Those that may be the plan come first; the others are compared on the episodes that both have met."""
    played: list[tuple[tuple[str, ...], int]] = []
    solved = solving({"cache": first_of(90), "fewer": first_of(70), "trained": first_of(60)})

    def play(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        played.append((tuple(keys), len(seeds)))
        return solved(keys, seeds)

    found = confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules(), is_over=lambda: len(played) >= 22)
    assert played == [(("cache", "fewer"), 10)] * 20 + [(("trained",), 10)] * 2
    assert found.n == 200
    assert [(row["label"], row["n"]) for row in found.rows()] == [
        ("a cache", 200), ("as trained", 20), ("DDIM 8 steps", 200)]  # fmt: skip
    assert found.difference("trained").n == 20
    assert found.has_held
    over = confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules(), is_over=lambda: True)
    assert (over.n, len(over.outcomes["trained"])) == (10, 10), "a first batch of each, whatever the time"


def test_who_is_far_behind_shows_it_soon() -> None:
    plan = dict.fromkeys(range(200), True)
    assert not is_shown_worse({}, plan, 0.95)
    assert not is_shown_worse({seed: seed >= 3 for seed in range(20)}, plan, 0.95)
    assert is_shown_worse(dict.fromkeys(range(10), False), plan, 0.95)
    assert not is_shown_worse(plan, dict.fromkeys(range(200), False), 0.95), "the better one is not worse"


def test_looking_after_every_batch_errs_no_more_often_than_stated() -> None:
    """Of one that is as good as the plan it is said that it is worse in at most 2.5 % of the cases."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        plan, theirs = (dict(enumerate(random.random(200) < 0.7)) for _ in range(2))
        seen = [{seed: theirs[seed] for seed in range(n)} for n in range(10, 201, 10)]
        wrong += any(is_shown_worse(some, plan, 0.95) for some in seen)
    assert wrong <= 400 * 0.025 + 3 * np.sqrt(400 * 0.025)


def test_what_may_not_be_the_plan_meets_no_more_once_it_is_shown_to_be_worse() -> None:
    play = solving({"cache": first_of(90), "fewer": first_of(0), "trained": first_of(0)})
    found = confirm(CACHE, [TRAINED, FEWER], FRESH, play, ConfirmRules())
    met = {key: len(outcomes) for key, outcomes in found.outcomes.items()}
    assert met == {"cache": 200, "fewer": 200, "trained": 10}
    assert found.difference("trained").n == 10
