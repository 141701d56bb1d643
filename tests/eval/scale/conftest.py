"""A miniature checkpoint with a plan, for a light world that any process can import."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from drifting_world import WORLD

from vivace.eval.cli import main
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.tiny.policies import tiny_dp_transformer


@pytest.fixture(scope="package")
def home(tmp_path_factory) -> Path:
    """A working folder with a checkpoint `policy` and the plan beside it."""
    folder = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    stats = {
        "observation.state": statistics(random.uniform(-3, 3, (50, 5)).astype(np.float32)),
        "action": statistics(random.uniform(-3, 3, (50, 3)).astype(np.float32)),
    }
    policy = tiny_dp_transformer(control_hz=20.0)
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), folder / "policy")
    asked = ["calibrate", "--policy.path=policy", *WORLD, "--accel.techniques=[block_cache]",
             "--accel.block_cache.updates=4", "--accel.block_cache.bubbling=2", "--accel.episodes=1",
             "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2"]  # fmt: skip
    with contextlib.chdir(folder):
        assert main(asked) == 0
    return folder


@pytest.fixture
def evaluated(home, monkeypatch, capsys):
    """Runs `vivace eval` there; returns its exit code, its results without times, and what it said."""
    monkeypatch.chdir(home)

    def run(name, *flags, episodes=8):
        asked = ["eval", "--policy.path=policy", *WORLD, "--loop.mode=async", "--latency.type=constant",
                 "--latency.seconds=0.1", f"--eval.n_episodes={episodes}", "--eval.batch_size=2",
                 "--eval.lineup=false", "--eval.curve=[0.2]", "--eval.video=false", "--bench.repeats=2",
                 "--eval.timed_chunks=2", "--accel.episodes=1", "--accel.samples=2",
                 "--accel.judged_episodes=1", "--accel.judged_samples=2", f"--output_dir={name}"]  # fmt: skip
        code = main([*asked, *flags])
        return code, capsys.readouterr().err

    return run
