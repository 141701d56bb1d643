"""A race and a confirmation find the planted combination, which is neither the fastest nor one technique."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import HZ, PlantedWorld, latency_s, planted_checkpoint

from vivace.accel.apply import accelerate, calibrate
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.eval.observations.gather import calibration_data
from vivace.eval.options import CommonOptions, EnvOptions, PolicyOptions
from vivace.eval.race.confirm import ConfirmRules
from vivace.eval.race.ladder import Step
from vivace.eval.race.play import BurstyLoop
from vivace.eval.race.race import RaceRules
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.scale.workforce import Workforce
from vivace.eval.simulation.latency_model import BurstyLatency
from vivace.eval.subject import load
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.contest import Arena, simple_plans
from vivace.eval.tune.store import Store
from vivace.policies.execution import Execution
from vivace.policies.session import Session


def steps(n: int) -> tuple[str, dict[str, Any]]:
    return "step_schedule", {"sampler": "euler", "n_steps": n}


def cache(updates: int) -> tuple[str, dict[str, Any]]:
    return "block_cache", {"updates": updates, "bubbling": 0}


BEST = Candidate((steps(10), cache(5)), label="10 steps, 5 updates")
CANDIDATES = (
    Candidate((), origin=Origin.TRAINED, label="as trained"),
    *(Candidate((steps(n),), origin=Origin.BASELINE, label=f"{n} steps") for n in (4, 7, 10)),
    *(Candidate((cache(n),), origin=Origin.DEFAULT, label=f"{n} updates") for n in (1, 5)),
    *(
        Candidate((steps(n), cache(m)), label=f"{n} steps, {m} updates")
        for n, m in ((9, 1), (10, 2), (11, 4))
    ),
    BEST,
)


class Command(CommonOptions):
    RUNS_LOOP = True


class Planted:
    """The policy and its world, and how long each candidate takes."""

    def __init__(self, folder: Path) -> None:
        self.command = Command(
            policy=PolicyOptions(path=str(planted_checkpoint(folder))),
            env=EnvOptions(type="planted", task="follow"),
            loop=LoopSettings(mode=Mode.ASYNC),
        )
        self.loaded = load(self.command)
        session = Session(self.loaded, self.loaded.as_trained, "")
        self.data = calibration_data(session, PlantedWorld, episodes=2, samples=4)
        self._made: dict[str, Execution] = {}
        self._times_s = {one.key: latency_s(self.made(one), self.loaded.as_trained) for one in CANDIDATES}

    def made(self, candidate: Candidate) -> Execution:
        if candidate.key not in self._made:
            loaded = self.loaded
            plan = calibrate(loaded.staged, loaded.fingerprint, self.data, candidate.requests)
            self._made[candidate.key] = accelerate(loaded.staged, plan)
        return self._made[candidate.key]

    def trials(self, store: Store) -> list[Trial]:
        """All of them, timed: as their counted work is."""
        for one in CANDIDATES:
            store.add(Trial(candidate=one, status=Status.TIMED, latencies_s=(self._times_s[one.key],)))
        return list(store.trials.values())


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted") / "policy")


def keeps(trial: Trial) -> bool:
    return trial.latencies_s[0] <= 1 / HZ


def test_what_keeps_the_budget_is_no_single_technique_that_works(planted: Planted, tmp_path: Path) -> None:
    kept = {trial.candidate.label: trial for trial in planted.trials(Store(tmp_path)) if keeps(trial)}
    assert set(kept) == {
        "4 steps", "7 steps", "9 steps, 1 updates", "10 steps, 2 updates", "11 steps, 4 updates", BEST.label,
    }  # fmt: skip
    assert min(kept, key=lambda label: kept[label].latencies_s) == "4 steps"


def arena_of(planted: Planted, workforce: Workforce, store: Store) -> Arena:
    """Where the planted policy's candidates race; what becomes of them goes into the store."""
    return Arena.of(
        planted.command,
        planted.loaded,
        made=planted.made,
        workforce=workforce,
        store=store,
        label=lambda candidate: candidate.label,
    )


@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 20))]
)
def test_the_planted_combination_is_found(planted: Planted, tmp_path: Path, seed: int) -> None:
    store = Store(tmp_path)
    first = 100_000 + 10_000 * seed
    with Workforce(ScaleOptions(), lambda: planted.loaded) as workforce:
        arena = arena_of(planted, workforce, store)
        kept = [trial for trial in planted.trials(store) if keeps(trial)]
        raced = arena.race(kept, range(first, first + 60), RaceRules())
        assert raced.leader == BEST.key
        winner = store.trials[raced.leader]
        simple = simple_plans(store.trials.values(), raced)
        fresh = range(first + 60, first + 160)
        found = arena.confirm(winner, simple, keeps, fresh, ConfirmRules())
    assert found.plan.key == BEST.key
    assert {one.label for one in found.simple} > {"as trained"}
    dropped = {trial.candidate.label: trial for trial in store.trials.values() if trial.stage is Status.RACED}
    assert {"4 steps", "7 steps", "9 steps, 1 updates"} <= set(dropped)
    assert all(" where " in trial.reason for trial in dropped.values())
    assert store.trials[BEST.key].status is Status.CONFIRMED
    assert np.mean([*store.trials[BEST.key].confirmed.values()]) > 0.9


def test_an_interrupted_race_goes_on_where_it_was(planted: Planted, tmp_path: Path) -> None:
    """Nothing is run again, and it comes out the same."""

    def raced(store: Store, n: int) -> Any:
        with Workforce(ScaleOptions(), lambda: planted.loaded) as workforce:
            arena = arena_of(planted, workforce, store)
            kept = [trial for trial in store.trials.values() if keeps(trial)]
            return arena.race(kept, range(100_000, 100_000 + n), RaceRules())

    once, twice = Store(tmp_path / "once"), Store(tmp_path / "twice")
    for store in (once, twice):
        store.folder.mkdir()
        planted.trials(store)
    whole = raced(once, 40)
    raced(twice, 20)
    lines = {file.name: file.read_text() for file in (tmp_path / "twice" / "episodes").iterdir()}
    again = raced(Store(tmp_path / "twice"), 40)
    assert again == whole
    for name, before in lines.items():
        assert (tmp_path / "twice" / "episodes" / name).read_text().startswith(before)


def test_a_ladder_is_no_worse_than_its_best_plan(planted: Planted, tmp_path: Path) -> None:
    """In this world the planted plan is the best one quiet and busy, and so it stays alone."""
    store = Store(tmp_path)
    with Workforce(ScaleOptions(), lambda: planted.loaded) as workforce:
        arena = arena_of(planted, workforce, store)
        some = [trial for trial in planted.trials(store) if trial.candidate.label in (BEST.label, "7 steps")]
        ladder = arena.ladder(some, range(50, 75), range(75, 100))
        jobs, _ = arena._jobs({trial.key: trial for trial in some}, range(50, 100), 25)
        loop = BurstyLoop(jobs, workforce, tmp_path / "episodes", BurstyLatency())
        steps = (Step(BEST.key), Step(some[0].key, 1.7))
        climbed = loop.climbing(steps, range(75, 100))
        alone = loop.bursting([BEST.key, some[0].key], range(75, 100))
    assert ladder.steps == (Step(BEST.key),)
    assert set(climbed) == set(range(75, 100))
    assert sum(alone[some[0].key].values()) < sum(climbed.values()) < sum(alone[BEST.key].values())
