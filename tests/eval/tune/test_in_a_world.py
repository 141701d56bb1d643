"""`vivace tune` from its flags to its plan in a world, and killed in the middle of the race."""

import json
from functools import partial
from pathlib import Path

import pytest
from planted import planted_checkpoint

from vivace.accel.plan import AccelerationPlan
from vivace.eval.cli import main
from vivace.eval.scale.workforce import Workforce
from vivace.eval.tune import pace, search
from vivace.eval.tune.candidate import Status
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.store import Store
from vivace.eval.verbs import tune as verb

QUICK = ("--env.type=planted", "--env.task=follow", "--budget.hz=20", "--accel.samples=2",
         "--accel.episodes=1", "--accel.judged_episodes=1", "--tune.samples=2", "--tune.candidates=6",
         "--tune.timed=1", "--tune.finalists=2", "--tune.threads=1", "--tune.techniques=[step_schedule]",
         "--tune.n_episodes=4", "--tune.confirm=3")  # fmt: skip


@pytest.fixture
def tune(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "MANY", 10)
    checkpoint = planted_checkpoint(tmp_path / "planted")

    def run(*more):
        code = main(["tune", f"--policy.path={checkpoint}", "--output_dir=out", *QUICK, *more])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return run


def test_what_keeps_the_budget_races_and_who_wins_is_confirmed_beside_as_trained(tune, monkeypatch):
    original, runs = Workforce.run, []

    def killed(self, jobs, folder):
        runs.append(jobs)
        if len(runs) == 3:  # the first tells what an episode takes
            raise KeyboardInterrupt
        return original(self, jobs, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Workforce, "run", killed)
        assert tune()[0] == 130
    before = {key: trial.raced for key, trial in Store(Path("out")).trials.items() if trial.raced}
    assert before, "the first look was stored"
    code, last, told = tune()
    assert code == 0
    trials = Store(Path("out")).trials
    assert all(trials[key].raced.items() >= raced.items() for key, raced in before.items())
    plan = AccelerationPlan.load(Path("out"))
    assert plan.measurements["judged_by"] == "success"
    winner = trials[last["winner"]["key"]]
    assert winner.status is Status.CONFIRMED
    assert len(winner.confirmed) == 3
    assert not winner.confirmed.keys() & winner.raced.keys(), "confirmed on episodes that nobody chose by"
    labels = [row["label"] for row in last["confirmed"]]
    assert "as trained" in labels
    assert "exact work removed" in labels
    assert "of 3 as trained" in last["sentence"] or "kept as trained" in last["sentence"]
    results = json.loads(Path("out/results.json").read_text())
    assert results["judged_by"] == "success"
    assert Path("out/report.html").is_file()
    assert "no world was named" not in told


def test_slow_candidates_leave_the_race_and_the_confirmation_their_time(tune, monkeypatch):
    """By a made-up clock: a candidate takes a minute, a call for episodes three, of twenty."""
    now_s = [0.0]

    def costing(kind, name, minutes):
        original = getattr(kind, name)

        def slow(*args):
            now_s[0] += 60 * minutes
            return original(*args)

        monkeypatch.setattr(kind, name, slow)

    costing(Counting, "trial", 1)
    costing(Workforce, "run", 3)
    monkeypatch.setattr(verb, "Deadline", partial(pace.Deadline, now=lambda: now_s[0]))
    code, last, told = tune(
        "--tune.minutes=20", "--tune.candidates=40", "--tune.n_episodes=40", "--tune.confirm=30"
    )
    assert code == 0
    assert last["confirmed"], "someone was confirmed"
    assert now_s[0] <= 60 * (20 + 3), "no more than a batch late"
    cut = last["cut_short"]
    assert any("of 40 candidates were counted" in one for one in cut)
    assert any("of 40 episodes" in one for one in cut)
    assert any("of 30 fresh episodes" in one for one in cut)
    assert all(one in " ".join(told.split()) for one in cut)
    assert json.loads(Path("out/results.json").read_text())["cut_short"] == cut
