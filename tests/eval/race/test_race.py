"""A race drops the best one no more often than it says, and hopeless ones early."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vivace.eval.race.race import Ending, Play, Played, Race, RaceRules, log_evidence, race
from vivace.policies.errors import BadSetting, NothingRuns


def simulated(rates: Mapping[str, float], seed: int, shared: float = 0.5, n: int = 400) -> Play:
    """Episodes of known success rates; in a share of them one draw decides for all, so that pairs agree."""
    random = np.random.default_rng(seed)
    own = random.random((len(rates), n))
    draws = np.where(random.random(n) < shared, random.random(n), own)
    won = {key: (row < rate).tolist() for row, (key, rate) in zip(draws, rates.items(), strict=True)}

    def play(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        return Played({(key, seed): won[key][seed] for key in keys for seed in seeds})

    return play


def many(rates: Mapping[str, float], times: int, rules: RaceRules, n: int = 100) -> list[Race]:
    return [race(list(rates), range(n), simulated(rates, seed), rules) for seed in range(times)]


@pytest.mark.parametrize(
    "rates",
    [
        {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 0.5, "f": 0.5},
        {"best": 0.6, "b": 0.58, "c": 0.55, "d": 0.2},
        {"best": 0.9, "b": 0.89},
    ],
    ids=["all equal", "close and far", "two"],
)
def test_the_best_is_dropped_no_more_often_than_stated(rates: Mapping[str, float]) -> None:
    rules, times = RaceRules(error=0.2), 1000
    races = many(rates, times, rules)
    wrong = sum(next(iter(rates)) in found.dropped for found in races)
    # half of the stated error is that of drops; a rate of exactly that is exceeded by 3 sigma once in 700
    assert wrong <= times * rules.error / 2 + 3 * np.sqrt(times * rules.error / 2)


def test_looking_all_the_time_needs_the_martingale() -> None:
    """The same test as if each look were the only one drops a best one far more often than it says."""
    rates = {"a": 0.5, "b": 0.5}
    rules = RaceRules(error=0.2, seeds_at_once=2)
    honest = sum(bool(found.dropped) for found in many(rates, 100, rules))
    naive = 0
    for seed in range(100):
        outcomes = np.array([*simulated(rates, seed)(["a", "b"], range(100)).outcomes.values()]).reshape(
            2, 100
        )
        difference = np.cumsum(outcomes[1].astype(int) - outcomes[0])
        spread = np.sqrt(np.maximum(np.cumsum(outcomes[0] != outcomes[1]), 1))
        naive += bool((np.abs(difference[9:]) / spread[9:] > 1.28).any())  # 10 % on either side
    assert honest <= 100 * 0.2 + 3 * np.sqrt(20)
    assert naive > 100 * 0.5


def test_hopeless_ones_go_early_and_the_best_wins() -> None:
    rates = {"best": 0.9, "good": 0.8, "poor": 0.4, "hopeless": 0.05}
    races = many(rates, 100, RaceRules())
    assert np.mean([found.leader == "best" for found in races]) >= 0.95
    assert np.mean([found.dropped["hopeless"].n for found in races]) <= 20
    assert np.mean(["poor" in found.dropped and found.dropped["poor"].n <= 60 for found in races]) >= 0.9


def test_a_race_that_ends_early_is_not_won_by_one_that_is_worse_by_the_margin() -> None:
    rates = {"close": 0.8, "best": 0.9, "other": 0.9}
    rules = RaceRules(error=0.2, margin=0.1)
    races = many(rates, 300, rules, n=400)
    settled = [found for found in races if found.ending == Ending.SETTLED]
    wrong = sum(found.leader == "close" for found in settled)
    assert len(settled) > 100
    assert wrong <= 300 * 0.1 + 3 * np.sqrt(30)


def test_equal_ones_are_settled_and_the_first_is_preferred() -> None:
    found = race(["fast", "slow"], range(1000), lambda keys, seeds: _all(keys, seeds, True), RaceRules())
    assert found.ending == Ending.SETTLED
    assert found.leader == "fast"
    assert len(found.outcomes["fast"]) < 300


def test_the_evidence_is_the_mixture_of_likelihood_ratios_on_discordant_pairs() -> None:
    """With 2 gained and 1 lost and a stake b: (1 + b)² (1 - b), whatever the others did."""
    stakes = np.linspace(0.05, 0.95, 10)
    found = np.exp(log_evidence(np.array(2), np.array(1), np.array(50), 0.0))
    assert found == pytest.approx(np.mean((1 + stakes) ** 2 * (1 - stakes)))


def test_a_dropped_one_plays_no_more_and_it_is_told_why() -> None:
    played = []

    def play(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        played.append((tuple(keys), tuple(seeds)))
        return Played({(key, seed): key != "bad" and seed != 3 for key in keys for seed in seeds})

    found = race(["bad", "good", "fine"], range(40), play, RaceRules())
    n = found.dropped["bad"].n
    assert found.dropped["bad"].told("the good one") == f"solved 0 of {n} where the good one solved {n - 1}"
    assert {keys for keys, seeds in played if seeds[0] >= n} == {("good", "fine")}
    assert found.alive == ("good", "fine")


def test_what_is_known_is_not_run_again_and_decides_the_same() -> None:
    rates = {"a": 0.9, "b": 0.6, "c": 0.1}
    whole = race(list(rates), range(60), simulated(rates, 7), RaceRules())
    half = {key: dict(list(found.items())[:35]) for key, found in whole.outcomes.items()}
    asked = []

    def play(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        asked.extend((key, seed) for key in keys for seed in seeds)
        return Played({(key, seed): whole.outcomes[key][seed] for key in keys for seed in seeds})

    again = race(list(rates), range(60), play, RaceRules(), half)
    assert again == whole
    assert all(seed not in half[key] for key, seed in asked)
    assert (
        len(asked) == len(set(asked)) == sum(map(len, whole.outcomes.values())) - sum(map(len, half.values()))
    )


def test_time_ends_a_race_between_two_batches() -> None:
    looks = []
    found = race(
        ["a", "b"],
        range(100),
        lambda keys, seeds: _all(keys, seeds, True),
        RaceRules(),
        on_batch=lambda state: looks.append(len(state.outcomes["a"])),
        is_over=lambda: len(looks) == 2,
    )
    assert found.ending == Ending.TIME
    assert looks == [10, 20]


@pytest.mark.parametrize(
    ("keys", "seeds"), [([], [1]), (["a"], []), (["a", "a"], [1])], ids=["nobody", "nothing", "twice"]
)
def test_a_race_needs_candidates_and_episodes(keys: list[str], seeds: list[int]) -> None:
    with pytest.raises(BadSetting, match="at least one is needed, and none twice"):
        race(keys, seeds, lambda keys, seeds: Played({}), RaceRules())


@pytest.mark.parametrize("rules", [{"error": 0.0}, {"margin": 1.0}, {"seeds_at_once": 0}], ids=str)
def test_rules_that_cannot_be_kept(rules: dict[str, float]) -> None:
    with pytest.raises(BadSetting, match="a race"):
        RaceRules(**rules)


def _all(keys: Sequence[str], seeds: Sequence[int], success: bool) -> Played:
    return Played({(key, seed): success for key in keys for seed in seeds})


def failing(play: Play, from_seed: Mapping[str, int]) -> Play:
    """The same, but from a seed on some candidates raise."""

    def run(keys: Sequence[str], seeds: Sequence[int]) -> Played:
        fail = [key for key in keys if from_seed.get(key, 10**6) <= max(seeds)]
        played = play([key for key in keys if key not in fail], seeds)
        return Played(played.outcomes, {key: f"ValueError: {key} broke" for key in fail})

    return run


def test_one_that_raises_leaves_the_race_with_its_reason_and_the_others_go_on() -> None:
    rates = {"fast": 0.9, "good": 0.8, "poor": 0.2}
    play = failing(simulated(rates, 1), {"fast": 15})
    found = race(list(rates), range(60), play, RaceRules())
    assert found.raised == {"fast": "ValueError: fast broke"}
    assert len(found.outcomes["fast"]) == 10, "what it met before stands"
    assert found.leader == "good"
    assert "fast" not in found.dropped
    assert len(found.outcomes["good"]) > 10
    alone = race(["fast", "good"], range(60), play, RaceRules())
    assert (alone.ending, alone.leader) == (Ending.ALONE, "good")


@pytest.mark.parametrize("seed", [0, 15], ids=["at once", "in the middle"])
def test_a_race_that_nobody_is_left_in_is_told_after_it_was_stored(seed: int) -> None:
    rates, looks = {"a": 0.9, "b": 0.5, "c": 0.4}, []
    play = failing(simulated(rates, 1), dict.fromkeys(rates, seed))
    with pytest.raises(NothingRuns, match="all 3 that were left in the race failed .ValueError: a broke"):
        race(list(rates), range(60), play, RaceRules(), on_batch=looks.append)
    assert set(looks[-1].raised) == {"a", "b", "c"}
