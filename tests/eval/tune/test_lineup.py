"""A tuned plan beside every technique alone, every baseline and the plan that lay beside the checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from planted import planted_checkpoint

from vivace.accel.plan import FILE_NAME
from vivace.eval.cli import main
from vivace.eval.tune import search
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.former import former
from vivace.eval.tune.lineup import known, lineup
from vivace.policies.load import load_policy

QUICK = ("--env.type=planted", "--env.task=follow", "--budget.hz=20", "--accel.samples=2",
         "--accel.episodes=1", "--accel.judged_episodes=1", "--tune.samples=2", "--tune.candidates=6",
         "--tune.timed=1", "--tune.finalists=2", "--tune.threads=1", "--tune.techniques=[step_schedule]",
         "--tune.n_episodes=4", "--tune.confirm=3")  # fmt: skip


def trial(name: str, took_s: float, solved: int, origin: Origin = Origin.DEFAULT, n: int = 200) -> Trial:
    outcomes = {seed: seed < solved for seed in range(n)}
    candidate = Candidate(((name, {}),), origin=origin, label=name)
    return Trial(candidate=candidate, status=Status.CONFIRMED, latencies_s=(took_s,) * 5, confirmed=outcomes)


def test_who_is_matched_and_who_is_beaten():
    plan = trial("plan", 0.02, 180, Origin.SEARCH)
    slower, faster = trial("slower", 0.03, 180), trial("faster", 0.01, 180)
    worse, better, late = trial("worse", 0.01, 120), trial("better", 0.03, 200), trial("late", 0.2, 200)
    failed = replace(trial("failed", 0.01, 200), status=Status.FAILED)
    trials = {one.key: one for one in (plan, slower, faster, worse, better, late, failed)}
    rule = SimpleNamespace(budget=SimpleNamespace(is_kept=lambda _, times_s: max(times_s) < 0.1))
    others = known(trials.values())
    found = lineup(plan, others, trials, rule)  # type: ignore[arg-type]
    told = {one.trial.candidate.label: (one.is_matched, one.is_beaten) for one in found.met}
    assert told == {
        "slower": (True, True),
        "faster": (True, False),
        "worse": (True, True),
        "better": (False, False),
        "late": (False, False),
    }
    assert found.told.startswith("of 4 single techniques")
    assert "as good as 3 (" in found.told
    assert found.told.endswith("than 2; not shown to be as good as better")


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "MANY", 10)
    return planted_checkpoint(tmp_path / "planted")


def test_the_plan_beside_the_checkpoint_has_to_be_beaten(checkpoint, capsys):
    assert main(["calibrate", f"--policy.path={checkpoint}", "--env.type=planted", "--env.task=follow",
                 "--accel.samples=2", "--accel.episodes=1", "--accel.judged_episodes=1",
                 "--accel.techniques=[step_schedule]", "--accel.step_schedule.n_steps=7"]) == 0  # fmt: skip
    assert (checkpoint / FILE_NAME).is_file()
    (candidate,) = former(load_policy(checkpoint))
    options = dict(candidate.requests)["step_schedule"]
    assert options["n_steps"] == 7
    assert "errors" not in options, "what calibration found is found anew"
    capsys.readouterr()
    asked = ["tune", f"--policy.path={checkpoint}", "--output_dir=out", "--tune.lineup=true", *QUICK]
    assert main(asked) == 0
    last = json.loads(capsys.readouterr().out)
    label = "the plan beside the checkpoint"
    assert label in [row["label"] for row in last["confirmed"]]
    rows = last["lineup"]["rows"]
    assert {row["n"] for row in rows} == {3}
    assert all(row["keeps_budget"] for row in rows)
    assert "Beside each technique alone" in Path("out/report.html").read_text()
    assert main(["report", "--results=out/results.json", "--table=tuned"]) == 0
    head, _, row, *_ = capsys.readouterr().out.splitlines()
    assert head.startswith("| policy, world | budget [ms] |")
    assert last["winner"]["label"] in row
    results = json.loads(Path("out/results.json").read_text())
    results["budget"]["seconds"], results["measured"]["budget_s"] = 0.08, 0.05
    Path("out/results.json").write_text(json.dumps(results))
    assert main(["report", "--results=out/results.json", "--table=tuned"]) == 0
    assert "| 80 |" in capsys.readouterr().out, "what was asked for, though the plan's own way leaves less"


def test_a_plan_of_another_policy_is_told_and_passed_over(checkpoint, capsys):
    (checkpoint / FILE_NAME).write_text("{}")
    assert former(load_policy(checkpoint)) == ()
    assert "the plan beside the checkpoint is not looked at" in " ".join(capsys.readouterr().err.split())
