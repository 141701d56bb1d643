"""bench's episodes and demonstrations, on workers and in shares."""

import json

import numpy as np
import pytest
from drifting_world import WORLD

from vivace.envs.demonstrations import load_demonstrations
from vivace.eval.cli import main

FLAGS = ("--policy.path=policy", "--bench.only=[accelerated]", "--bench.compile=false", "--bench.repeats=2",
         "--bench.n_episodes=4", "--bench.batch_size=2", "--bench.threads=1", "--accel.episodes=1",
         "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2")  # fmt: skip
JUDGED = ("name", "successes", "n", "interval", "difference", "p_value", "confirmed", "action_error")


def judged(folder):
    rows = json.loads((folder / "results.json").read_text())["pareto"]
    return [{key: row[key] for key in JUDGED if key in row} for row in rows]


@pytest.mark.long
def test_bench_judges_the_same_on_workers_and_in_shares(home, monkeypatch, capsys):
    monkeypatch.chdir(home)

    def bench(*flags):
        return main(["bench", *WORLD, *FLAGS, "--bench.choose=accelerated", *flags])

    assert bench("--output_dir=bench") == 0
    expected = judged(home / "bench")
    assert [row["n"] for row in expected] == [4, 4]
    assert expected[1]["confirmed"]["n"] == 4
    assert bench("--output_dir=bench-2", "--scale.workers=2") == 0
    assert judged(home / "bench-2") == expected
    for i in (1, 2):
        assert bench("--output_dir=bench-shared", f"--scale.shard={i}/2") == 0
    assert main(["report", "--merge=bench-shared"]) == 0
    assert judged(home / "bench-shared") == expected
    capsys.readouterr()
    assert bench("--output_dir=bench-0", "--scale.shard=0/2") == 2
    assert "only episodes have shares" in capsys.readouterr().err
    assert bench("--output_dir=bench-1", "--scale.shard=1/2", "--bench.choose=", "--bench.confirm=2") == 2
    assert "what is confirmed follows from all shares" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.sim
def test_demonstrations_are_the_same_on_workers(tmp_path, capsys):
    asked = ["collect", "--env.task=reach-v3", "--collect.episodes=5"]
    assert main([*asked, f"--output_dir={tmp_path / 'one'}"]) == 0
    assert main([*asked, f"--output_dir={tmp_path / 'two'}", "--scale.workers=2"]) == 0
    one, two = (load_demonstrations(tmp_path / name) for name in ("one", "two"))
    for name in ("state", "action", "episode"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    said = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines() if line[0] == "{"]
    assert said[0]["tried"] == said[1]["tried"] >= 5
    assert main([*asked, f"--output_dir={tmp_path / 'three'}", "--scale.shard=1/2"]) == 2
    assert "a dataset is one; give other --collect.seed" in capsys.readouterr().err
