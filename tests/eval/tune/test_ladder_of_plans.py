"""`vivace tune --tune.ladder=true` writes a ladder, or the best plan alone, and how to run it."""

import json
from pathlib import Path

from planted import planted_checkpoint

from vivace.accel.plan import AccelerationPlan
from vivace.eval.cli import main
from vivace.eval.tune import search

QUICK = [
    "--env.type=planted",
    "--env.task=follow",
    "--budget.hz=20",
    "--accel.samples=2",
    "--accel.episodes=1",
    "--accel.judged_episodes=1",
    "--tune.samples=2",
    "--tune.candidates=4",
    "--tune.timed=1",
    "--tune.finalists=1",
    "--tune.threads=1",
    "--tune.techniques=[step_schedule]",
    "--tune.n_episodes=2",
    "--tune.confirm=3",
    "--tune.ladder=true",
]


def test_a_ladder_is_written_with_its_plans(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "MANY", 5)
    checkpoint = planted_checkpoint(tmp_path / "planted")
    assert main(["tune", f"--policy.path={checkpoint}", "--output_dir=out", *QUICK]) == 0
    last = json.loads(capsys.readouterr().out)
    found = json.loads(Path("out/ladder.json").read_text())
    assert last["ladder"] == found
    assert found["told"].startswith(("one plan is the best", "no ladder: on 3", "a ladder: on 3"))
    assert [rung["from_load"] is None for rung in found["rungs"]] == [True] + [False] * (
        len(found["rungs"]) - 1
    )
    for rung in found["rungs"]:
        AccelerationPlan.load(Path(rung["plan"]))
    key = Path(found["rungs"][0]["plan"]).name
    assert f"--bundle=BUNDLE#{key}" in found["export_and_run_with"]
