"""eval/README.md's tutorial, line by line as it stands there, with smaller numbers."""

import json
import re
import shlex
from pathlib import Path

import pytest

from vivace.eval.cli import main

README = Path(__file__).parents[2] / "eval" / "README.md"
FEW = ["--accel.episodes=1", "--accel.samples=1", "--accel.judged_episodes=1", "--accel.judged_samples=2",
       "--accel.block_cache.bubbling=1"]  # fmt: skip
SMALLER = {
    "collect": ["--collect.episodes=2"],
    "train": ["--policy.n_layer=1", "--policy.n_emb=16", "--train.steps=2", "--train.batch_size=8"],
    "calibrate": [*FEW, "--env.max_steps=20"],
    "explain": [],
    "eval": [*FEW, "--env.max_steps=20", "--eval.n_episodes=1", "--eval.timed_chunks=2", "--bench.repeats=1",
             "--eval.video=false"],
    "export": [*FEW, "--env.max_steps=20", "--export.samples=2"],
    "run": ["--n_episodes=1", "--duration_s=2", "--inference.warmup=1", "--watchdog.misses=0"],
}  # fmt: skip


@pytest.mark.long
@pytest.mark.sim
def test_your_task_your_policy_word_for_word(tmp_path, monkeypatch, capsys):
    """Acceptance 6: collect, train, calibrate, explain, eval, export, run, on a task that is not bundled."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r"<!-- tutorial -->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    commands = [shlex.split(line)[1:] for line in block.strip().splitlines()]
    assert [verb for verb, *_ in commands] == list(SMALLER)
    for verb, *given in commands:
        assert main([verb, *given, *SMALLER[verb]]) == 0, capsys.readouterr().err[-2000:]
    run = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert run["sources"]["chunk"] > 0
    assert (tmp_path / "outputs/run/button-press/run.mp4").stat().st_size > 0
    results = json.loads((tmp_path / "outputs/eval/button-press/results.json").read_text())
    assert results["environment"]["task"] == "button-press-v3"
