"""The whole search in planted worlds: it finds what wins there, and claims nothing that won by chance."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import HZ, PlantedWorld, planted_checkpoint, planted_latencies

from vivace.accel.plan import AccelerationPlan
from vivace.eval.measure.latencies import Measured
from vivace.eval.measure.timing import Rounds
from vivace.eval.options import EnvOptions, PolicyOptions
from vivace.eval.race.race import Race
from vivace.eval.tune import finals
from vivace.eval.tune.budget import BudgetOptions
from vivace.eval.tune.candidate import Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.contest import Arena
from vivace.eval.tune.store import Store
from vivace.eval.tune.ways import Ways
from vivace.eval.verbs.tune import TuneCommand, TuneOptions, run
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ChunkExecution, Mode

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))]
FIRST = 10_000
"""Seeds of searches are so far apart, so that none meets another's episodes."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return planted_checkpoint(tmp_path_factory.mktemp("planted") / "policy")


def command(checkpoint: Path, folder: Path, seed: int, ms: float, **options: object) -> TuneCommand:
    return TuneCommand(
        policy=PolicyOptions(path=str(checkpoint)),
        env=EnvOptions(type="planted", task="follow"),
        budget=BudgetOptions(ms=ms),
        seed=FIRST * seed,
        output_dir=str(folder),
        tune=TuneOptions(minutes=1000, threads=1, **options),  # no clock decides anything
    )


def rate(trial: Trial) -> float:
    """Share of the episodes of the race that were solved."""
    return float(np.mean([*trial.raced.values()])) if trial.raced else 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_planted_combination_is_found(checkpoint: Path, tmp_path: Path, seed: int) -> None:
    """Fewer steps and a cache, as `planted` says; in the budget neither alone solves half."""
    asked = command(
        checkpoint,
        tmp_path / "out",
        seed,
        ms=1e3 / HZ,
        candidates=150,
        samples=4,
        n_episodes=60,
        confirm=60,
        techniques=["step_schedule", "block_cache"],
    )
    last, is_found = run(asked, planted_latencies)
    assert is_found
    trials = Store(tmp_path / "out").trials
    plan = trials[last["winner"]["key"]]
    assert {"step_schedule", "block_cache"} <= set(plan.candidate.kinds)
    assert plan.status is Status.CONFIRMED
    assert plan.latencies_s[0] <= 1 / HZ
    assert np.mean([*plan.confirmed.values()]) >= 0.85
    raced = [trial for trial in trials.values() if trial.raced]
    assert min(raced, key=lambda trial: trial.latencies_s[0]).key != plan.key, "the fastest is another"
    alone = [one for one in raced if not {"step_schedule", "block_cache"} <= set(one.candidate.kinds)]
    assert alone
    assert max(map(rate, alone)) < 0.6
    rivals = {
        kind for one in raced if one.candidate.origin is Origin.BASELINE for kind in one.candidate.kinds
    }
    assert "warm_start" in rivals, "what has to be beaten races, also where it is not searched"
    labels = [row["label"] for row in last["confirmed"]]
    assert {"as trained", "exact work removed"} & set(labels)


class Luck(PlantedWorld):
    """Whoever acts: a draw of its own of every action decides whether an episode is solved."""

    def step(self, action: np.ndarray):
        seen, reward, ended, is_over, info = super().step(action)
        drawn = np.random.default_rng(np.ascontiguousarray(action).view(np.uint8)).random()
        return seen, reward, ended, is_over, {"is_success": is_over and bool(drawn < 0.6)}


@pytest.fixture
def lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing helps, and all take as long: one that is faster and no worse would hold rightly."""
    monkeypatch.setattr("planted.PlantedWorld", Luck)
    monkeypatch.setattr("planted.latency_s", lambda execution, trained: 0.03)


def is_claimed(checkpoint: Path, folder: Path, seed: int) -> bool:
    """Whether a search in a world of luck claims what needed one."""
    asked = command(
        checkpoint,
        folder,
        seed,
        ms=1e3 / HZ,
        candidates=30,
        samples=2,
        n_episodes=30,
        confirm=40,
        techniques=["step_schedule", "block_cache"],
    )
    last, is_found = run(asked, planted_latencies)
    assert is_found
    trials = Store(folder).trials
    assert sum(bool(one.raced) for one in trials.values()) > 5
    return not trials[last["winner"]["key"]].candidate.origin.is_rival


@pytest.mark.usefixtures("lucky")
def test_what_won_on_the_search_seeds_by_chance_is_not_claimed(checkpoint: Path, tmp_path: Path) -> None:
    assert not is_claimed(checkpoint, tmp_path / "out", 0)


@pytest.mark.long
@pytest.mark.usefixtures("lucky")
def test_luck_is_claimed_no_more_often_than_stated(checkpoint: Path, tmp_path: Path) -> None:
    claimed = sum(is_claimed(checkpoint, tmp_path / f"{seed}", seed) for seed in range(20))
    assert claimed <= 20 * 0.025 + 3 * np.sqrt(20 * 0.025)


def test_what_another_search_knows_is_taken_over_for_another_budget(checkpoint: Path, tmp_path: Path) -> None:
    """Nothing of it is done again, and who lost a race there may win here."""
    few = {"candidates": 30, "samples": 2, "n_episodes": 20, "confirm": 20, "techniques": ["step_schedule"]}
    loose = command(checkpoint, tmp_path / "loose", 0, ms=4e3 / HZ, **few)
    run(loose, planted_latencies)
    before = Store(tmp_path / "loose").trials
    tight = command(checkpoint, tmp_path / "tight", 0, ms=1e3 / HZ, known=str(tmp_path / "loose"), **few)
    last, is_found = run(tight, planted_latencies)
    assert is_found
    after = Store(tmp_path / "tight")
    assert after.n_known == len(before)
    assert list(after.trials)[: len(before)] == list(before)
    assert len(after.trials) <= len(before) + 15 + 8, "half as many again, and other ways of the winner"
    for key, trial in before.items():
        assert after.trials[key].latencies_s[: len(trial.latencies_s)] == trial.latencies_s
        assert trial.raced.items() <= after.trials[key].raced.items()
        assert trial.confirmed.items() <= after.trials[key].confirmed.items()
    plan = after.trials[last["winner"]["key"]]
    assert max(plan.latencies_s) <= 1 / HZ
    assert all(max(after.trials[key].latencies_s) <= 1 / HZ for key in last["race"]["entrants"])


def differing(some: Mapping[str, Trial], others: Mapping[str, Trial]) -> list[tuple[str, int]]:
    """Candidates and seeds of the episodes that both have met, of which one was solved and the other not."""
    both = [(some[key].raced, others[key].raced, key) for key in some.keys() & others.keys()]
    both += [(some[key].confirmed, others[key].confirmed, key) for key in some.keys() & others.keys()]
    return [
        (key, seed) for one, other, key in both for seed in one.keys() & other if one[seed] != other[seed]
    ]


def test_what_was_timed_on_a_faster_machine_is_timed_and_run_again(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    """A machine that has become twice as slow: another hour's latencies were held against its own."""
    few = {"candidates": 20, "samples": 2, "n_episodes": 20, "confirm": 20, "techniques": ["step_schedule"]}
    run(command(checkpoint, tmp_path / "then", 0, ms=2e3 / HZ, **few), planted_latencies)
    before = Store(tmp_path / "then").trials

    def slower(runs: Any, data: Any, rounds: Rounds) -> Measured:
        found = planted_latencies(runs, data, rounds)
        return replace(found, times_s={k: [2 * t for t in times] for k, times in found.times_s.items()})

    now = command(checkpoint, tmp_path / "now", 0, ms=2e3 / HZ, known=str(tmp_path / "then"), **few)
    capsys.readouterr()
    last, is_found = run(now, slower)
    assert is_found
    assert "take 2.00 times as long as when they were timed" in " ".join(capsys.readouterr().err.split())
    after = Store(tmp_path / "now").trials
    run(command(checkpoint, tmp_path / "fresh", 0, ms=2e3 / HZ, **few), slower)
    fresh = Store(tmp_path / "fresh").trials
    assert len(differing(before, fresh)) > 10, "a slower machine solves less"
    assert not differing(after, fresh), "as if nothing had been known"
    timed = [key for key, trial in before.items() if trial.latencies_s and after[key].latencies_s]
    assert timed
    for key in timed:
        assert after[key].latencies_s[0] == pytest.approx(2 * before[key].latencies_s[0])
        assert (after[key].flops, after[key].action_error) == (before[key].flops, before[key].action_error)
    assert max(after[last["winner"]["key"]].latencies_s) <= 2 / HZ


def test_who_alone_keeps_the_budget_is_confirmed_without_a_race(checkpoint, tmp_path, monkeypatch) -> None:
    few = {"candidates": 30, "samples": 2, "n_episodes": 20, "confirm": 20, "techniques": ["step_schedule"]}
    keeping = Rule.keeping
    monkeypatch.setattr(Rule, "keeping", lambda rule, trials: keeping(rule, trials)[:1])
    last, is_found = run(command(checkpoint, tmp_path / "out", 0, ms=1e3 / HZ, **few), planted_latencies)
    assert is_found
    plan = Store(tmp_path / "out").trials[last["winner"]["key"]]
    assert not plan.raced
    assert len(plan.confirmed) == 20
    assert "was not judged" not in last["sentence"]
    assert (last["race"]["ending"], last["race"]["entrants"]) == ("all others were dropped", [plan.key])


@pytest.mark.long
def test_trials_of_another_kind_of_search_are_not_taken_over(checkpoint: Path, tmp_path: Path) -> None:
    few = {"candidates": 8, "samples": 2, "n_episodes": 10, "confirm": 10, "techniques": ["step_schedule"]}
    run(command(checkpoint, tmp_path / "one", 0, ms=1e3, **few), planted_latencies)
    other = command(checkpoint, tmp_path / "two", 1, ms=1e3, known=str(tmp_path / "one"), **few)
    with pytest.raises(BadSetting, match="another job"):
        run(other, planted_latencies)
    nowhere = command(checkpoint, tmp_path / "three", 0, ms=1e3, known=str(tmp_path / "nowhere"), **few)
    with pytest.raises(BadSetting, match="no search is there"):
        run(nowhere, planted_latencies)


def test_the_winner_is_tried_with_its_chunks_executed_otherwise(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the goal moves on fast, a chunk of which half is executed is not yet as far from it."""
    monkeypatch.setattr("planted.DRIFT", 0.1)
    few = {"candidates": 40, "samples": 2, "n_episodes": 60, "confirm": 60}
    few |= {"techniques": ["step_schedule", "block_cache"]}
    last, is_found = run(command(checkpoint, tmp_path / "out", 0, ms=1e3 / HZ, **few), planted_latencies)
    assert is_found
    trials = Store(tmp_path / "out").trials
    plan = trials[last["winner"]["key"]]
    alike = [one for one in trials.values() if one.candidate.requests == plan.candidate.requests]
    ways = {one.candidate.execution: one for one in alike if one.raced}
    own = ways[ChunkExecution()]
    assert len(ways) >= 4
    assert ChunkExecution(mode=Mode.RTC) in ways, "who is not told a mode tries this one too"
    assert plan.candidate.execution.chosen
    assert rate(plan) > rate(own) + 0.2
    assert all(
        one.latencies_s == own.latencies_s for one in ways.values() if not one.candidate.execution.mode
    )
    saved = AccelerationPlan.load(tmp_path / "out").execution
    assert saved.chosen == {"mode": "async", **plan.candidate.execution.chosen}


def test_where_no_time_is_left_for_other_ways_to_execute_chunks_the_winner_of_the_race_stays(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, races = Arena.race, list[int]()

    def race(arena: Arena, trials: Any, seeds: range, rules: Any) -> Any:
        races.append(len(trials))
        return original(replace(arena, is_over=lambda: len(races) == 2), trials, seeds, rules)

    monkeypatch.setattr(Arena, "race", race)
    few = {"candidates": 20, "samples": 2, "n_episodes": 20, "confirm": 20, "techniques": ["step_schedule"]}
    last, is_found = run(command(checkpoint, tmp_path / "out", 0, ms=1e3 / HZ, **few), planted_latencies)
    assert is_found
    assert len(races) == 2
    winner = Store(tmp_path / "out").trials[last["confirmed"][0]["key"]]
    assert len(winner.raced) == 20, "nobody is confirmed who has not raced"
    assert any("a race met 0 of 20 episodes" in one for one in last["cut_short"])


def test_other_ways_to_execute_chunks_are_those_of_who_wins_where_a_search_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more episodes another may win; chunks of who won before were executed otherwise, and raced it."""
    few = {"candidates": 20, "samples": 2, "n_episodes": 20, "confirm": 20, "techniques": ["step_schedule"]}
    asked = command(checkpoint, tmp_path / "out", 0, ms=1e3 / HZ, **few)
    stayed, timed, winners = finals._stayed, Ways.timed, list[str]()

    def last_first(state: Race, trials: Mapping[str, Trial]) -> list[Trial]:
        return stayed(state, trials)[::-1]

    def told(ways: Ways, trial: Trial, *rest: Any) -> list[Trial]:
        winners.append(trial.key)
        return timed(ways, trial, *rest)

    monkeypatch.setattr(Ways, "timed", told)
    with monkeypatch.context() as patch:
        patch.setattr(finals, "_stayed", last_first)
        run(asked, planted_latencies)
    assert run(asked, planted_latencies)[1]
    trials = Store(tmp_path / "out").trials
    before, now = (trials[key] for key in winners)
    assert before.candidate.requests != now.candidate.requests
    assert any(
        one.raced and one.candidate.requests == now.candidate.requests and one.candidate.execution.chosen
        for one in trials.values()
    )
