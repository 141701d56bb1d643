"""One candidate that raises costs the search no other, wherever it does; where all do, it is the world."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest

from vivace.eval.cli import main
from vivace.eval.tune import search
from vivace.eval.tune.candidate import Origin, Status, Trial
from vivace.eval.tune.contest import Arena
from vivace.eval.tune.store import Store
from vivace.eval.tune.timing import Timing
from vivace.policies.session import Session

QUICK = ("--env.type=planted", "--budget.ms=100000", "--accel.samples=2", "--accel.episodes=1",
         "--accel.judged_episodes=1", "--tune.samples=2", "--tune.candidates=3", "--tune.timed=1",
         "--tune.finalists=1", "--tune.threads=1", "--tune.techniques=[step_schedule]",
         "--tune.n_episodes=3", "--tune.confirm=2")  # fmt: skip
BROKE = "RuntimeError: it broke"


@pytest.fixture
def tune(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "MANY", 6)
    checkpoint = planted.planted_checkpoint(tmp_path / "planted")

    def run(*more: str, task: str = "follow") -> tuple[int, Any, str]:
        asked = ["tune", f"--policy.path={checkpoint}", "--output_dir=out", f"--env.task={task}", *QUICK]
        code = main([*asked, *more])
        captured = capsys.readouterr()
        last = json.loads(captured.out) if captured.out else None
        print(captured.err, file=sys.stderr)
        return code, last, " ".join(captured.err.split())

    return run


@pytest.fixture
def breaks(monkeypatch) -> Callable[..., None]:
    """Lets the chunks of some candidates raise while a stage runs, from the n-th on."""
    broken: dict[str, int] = {}
    original = Session.predict

    def predict(self, *args):
        plan = str(self.execution.plan)
        if plan in broken:
            broken[plan] -= 1
            if broken[plan] < 0:
                raise RuntimeError("it broke")
        return original(self, *args)

    monkeypatch.setattr(Session, "predict", predict)

    def during(kind: type, name: str, who: Callable[[Trial], bool], after: int = 0) -> None:
        staged = getattr(kind, name)

        def run(self, first, *args, **more):
            """The first argument is a trial, or several."""
            for trial in [first] if isinstance(first, Trial) else first:
                if who(trial):
                    made = self._session_of(trial).execution if kind is Timing else self.made(trial.candidate)
                    broken[str(made.plan)] = after
            try:
                return staged(self, first, *args, **more)
            finally:
                broken.clear()

        monkeypatch.setattr(kind, name, run)

    return during


def is_trained(trial: Trial) -> bool:
    return trial.candidate.origin is Origin.TRAINED


def is_exact(trial: Trial) -> bool:
    return trial.candidate.origin is Origin.EXACT


def is_two_steps(trial: Trial) -> bool:
    return trial.candidate.label == "euler 2 steps, hoisted"


def stored(who: Callable[[Trial], bool]) -> Trial:
    return next(trial for trial in Store(Path("out")).trials.values() if who(trial))


def check_named(trial: Trial, stage: Status, last: Any, told: str, reason: str = BROKE) -> None:
    """Recorded with its reason, and named in what is printed, in the last line and on the page."""
    assert (trial.status, trial.stage, trial.reason) == (Status.FAILED, stage, reason)
    assert f"left out: {trial.candidate.label}: {reason}" in told
    assert last["left_out"][trial.candidate.label] == reason
    assert last["winner"]["key"] != trial.key
    page = Path("out/report.html").read_text()
    assert page.count(reason) >= 1


def test_one_that_raises_in_the_middle_of_the_rounds_is_left_out_and_the_others_are_timed(tune, breaks):
    breaks(Timing, "time", is_two_steps, after=3)  # the first chunk tells how long one takes
    code, last, told = tune()
    assert code == 0
    check_named(stored(is_two_steps), Status.TIMED, last, told)
    others = [one for one in Store(Path("out")).trials.values() if one.candidate.origin.is_rival]
    assert {len(one.latencies_s) >= 5 for one in others if not is_two_steps(one)} == {True}


def test_one_that_raises_while_it_races_leaves_the_race(tune, breaks):
    breaks(Arena, "race", is_exact)
    code, last, told = tune()
    assert code == 0
    trial = stored(is_exact)
    check_named(trial, Status.RACED, last, told)
    assert trial.key in last["race"]["entrants"]
    assert last["confirmed"]


def test_a_winner_that_raises_while_it_is_confirmed_loses_its_place(tune, breaks, monkeypatch):
    winners: list[Trial] = []
    original = Arena.confirm

    def confirm(self, winner, *args):
        winners.append(winner)
        return original(self, winner, *args)

    monkeypatch.setattr(Arena, "confirm", confirm)
    breaks(Arena, "confirm", lambda trial: True)
    code, last, told = tune()
    assert code == 0
    failed = stored(lambda trial: trial.key == winners[0].key)
    check_named(failed, Status.CONFIRMED, last, told)
    found = stored(lambda trial: trial.key == last["winner"]["key"])
    assert found.status is Status.CONFIRMED
    assert len(found.confirmed) == 2
    again, last, _ = tune()
    assert (again, last["winner"]["key"]) == (0, found.key), "what failed is not tried again"


@pytest.mark.long
def test_as_trained_that_raises_while_it_is_timed_is_told(tune, breaks):
    breaks(Timing, "time", is_trained, after=2)
    code, last, told = tune()
    assert code == 0
    check_named(stored(is_trained), Status.TIMED, last, told)
    assert f"(as trained it failed: {BROKE})" in last["sentence"]
    assert last["measured"]["as_trained_failed"] == BROKE
    assert last["confirmed"]


def test_as_trained_that_raises_while_it_is_confirmed_is_told(tune, breaks, monkeypatch):
    original = Arena.confirm
    monkeypatch.setattr(
        Arena, "confirm", lambda self, simple, winner, *args: original(self, winner, simple, *args)
    )
    breaks(Arena, "confirm", is_trained)  # among the simple plans, here the first argument
    swapped = Arena.confirm
    monkeypatch.setattr(
        Arena, "confirm", lambda self, winner, simple, *args: swapped(self, simple, winner, *args)
    )
    code, last, told = tune("--tune.n_episodes=1")
    assert code == 0
    check_named(stored(is_trained), Status.CONFIRMED, last, told)
    assert f"(as trained it failed: {BROKE})" in last["sentence"]
    assert f"as trained it failed: {BROKE}" in Path("out/report.html").read_text()
    assert last["confirmed"]


@pytest.mark.long
def test_one_that_raises_in_the_lineup_is_left_out_of_it(tune, breaks):
    breaks(Arena, "meet", is_two_steps)
    code, last, told = tune("--tune.lineup=true")
    assert code == 0
    check_named(stored(is_two_steps), Status.CONFIRMED, last, told)
    labels = [row["label"] for row in last["lineup"]["rows"]]
    assert labels
    assert "euler 2 steps, hoisted" not in labels


@pytest.mark.long
def test_one_that_raises_on_the_ladder_is_no_rung(tune, breaks):
    raced: list[Trial] = []
    breaks(Arena, "ladder", lambda trial: not raced.append(trial) and len(raced) == 2)
    code, last, told = tune("--tune.ladder=true")
    assert code == 0
    assert f"left out of the ladder: {raced[1].candidate.label}: {BROKE}" in told
    assert raced[1].key not in {Path(rung["plan"]).name for rung in last["ladder"]["rungs"]}


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.long)])
def test_what_a_world_raises_of_some_actions_is_theirs_here_and_in_a_worker(tune, workers):
    """Few Euler steps diverge, and the fragile world does not stand that."""
    flags = ("--scale.workers=2", "--policy.discover_packages_path=planted_plugin") if workers else ()
    code, last, told = tune(*flags, task="fragile")
    assert code == 0
    failed = [one for one in Store(Path("out")).trials.values() if one.status is Status.FAILED]
    assert failed
    for trial in failed:
        check_named(trial, Status.RACED, last, told, "FloatingPointError: the world came apart")
    assert last["confirmed"]


def test_a_world_that_fails_is_one_clear_error_and_nobodys_fault(tune, monkeypatch):
    original = Arena.race

    def step(self, action):
        raise OSError("the simulator is gone")

    def race(self, *args):
        with monkeypatch.context() as gone:
            gone.setattr(planted.PlantedWorld, "step", step)
            return original(self, *args)

    monkeypatch.setattr(Arena, "race", race)
    code, last, told = tune()
    assert (code, last) == (2, None)
    assert "episodes can be run of none of" in told
    assert "candidates, and so no technique is at fault: OSError: the simulator is gone" in told
    failed = [one for one in Store(Path("out")).trials.values() if one.status is Status.FAILED]
    assert not failed


def test_where_nothing_can_be_timed_it_is_one_clear_error(tune, breaks):
    breaks(Timing, "time", lambda trial: True, after=1)
    code, last, told = tune()
    assert (code, last) == (2, None)
    assert "chunks can be timed of none of" in told
    assert f"candidates, and so no technique is at fault: {BROKE}" in told
    assert not [one for one in Store(Path("out")).trials.values() if one.stage is Status.TIMED]
