"""A miniature checkpoint that fits Meta-World, saved as lerobot saves one, with a plan beside it."""

from pathlib import Path

import numpy as np
import pytest
from lerobot.configs.types import FeatureType, PolicyFeature

from vivace.eval.cli import main
from vivace.eval.train import save, statistics
from vivace.policies.dp_transformer import make_dp_transformer_pre_post_processors
from vivace.policies.tiny import tiny_dp_transformer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    policy = tiny_dp_transformer(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (39,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )
    random = np.random.default_rng(0)
    stats = {
        "observation.state": statistics(random.uniform(-1, 1, (50, 39)).astype(np.float32)),
        "action": statistics(random.uniform(-1, 1, (50, 4)).astype(np.float32)),
    }
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), folder)
    asked = ["calibrate", f"--policy.path={folder}", "--env.task=reach-moving", "--accel.updates=4",
             "--accel.bubbling=2", "--accel.episodes=1", "--accel.samples=2"]  # fmt: skip
    assert main(asked) == 0
    return folder
