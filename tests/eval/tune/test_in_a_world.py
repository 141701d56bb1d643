"""`vivace tune` from its flags to its plan in a world, and killed in the middle of the race."""

import json
from pathlib import Path

import pytest
from planted import planted_checkpoint

from vivace.accel.plan import AccelerationPlan
from vivace.eval.cli import main
from vivace.eval.scale.workforce import Workforce
from vivace.eval.tune import search
from vivace.eval.tune.candidate import Status
from vivace.eval.tune.store import Store

QUICK = ("--env.type=planted", "--env.task=follow", "--budget.hz=20", "--accel.samples=2",
         "--accel.episodes=1", "--accel.judged_episodes=1", "--tune.samples=2", "--tune.candidates=6",
         "--tune.timed=1", "--tune.finalists=2", "--tune.threads=1", "--tune.techniques=[step_schedule]",
         "--tune.n_episodes=4", "--tune.confirm=3")  # fmt: skip


@pytest.fixture
def tune(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "MANY", 10)
    checkpoint = planted_checkpoint(tmp_path / "planted")

    def run():
        code = main(["tune", f"--policy.path={checkpoint}", "--output_dir=out", *QUICK])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return run


def test_what_keeps_the_budget_races_and_who_wins_is_confirmed_beside_as_trained(tune, monkeypatch):
    original, runs = Workforce.run, []

    def killed(self, jobs, folder):
        runs.append(jobs)
        if len(runs) == 2:
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
