"""A miniature checkpoint that fits Meta-World, saved as lerobot saves one, with a plan beside it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import strangers_robot
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from vivace.eval.cli import main
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.families.cogact.policy import make_cogact_pre_post_processors
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer


@pytest.fixture(autouse=True)
def robots_in_this_process(request, monkeypatch):
    """Robots that exist in a test's memory only cannot be made in a process of their own."""
    if "test_run_deadman" not in request.node.nodeid:
        monkeypatch.setattr("vivace.deploy.deadman.robot_access.is_wanted", lambda settings, kind: False)


@pytest.fixture(scope="session")
def bare_checkpoint(tmp_path_factory) -> Path:
    """Without a plan; read only."""
    policy = tiny_dp_transformer(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (39,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        control_hz=20.0,
    )
    random = np.random.default_rng(0)
    stats = {
        "observation.state": statistics(random.uniform(-1, 1, (50, 39)).astype(np.float32)),
        "action": statistics(random.uniform(-1, 1, (50, 4)).astype(np.float32)),
    }
    folder = tmp_path_factory.mktemp("bare") / "tiny"
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(bare_checkpoint, tmp_path_factory) -> Path:
    folder = shutil.copytree(bare_checkpoint, tmp_path_factory.mktemp("checkpoint") / "tiny")
    asked = ["calibrate", f"--policy.path={folder}", "--env.task=reach-moving",
             "--accel.block_cache.updates=4", "--accel.block_cache.bubbling=2", "--accel.episodes=1",
             "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2"]  # fmt: skip
    assert main(asked) == 0
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint, tmp_path_factory) -> Path:
    """That checkpoint and its plan, exported."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    asked = ["export", f"--policy.path={checkpoint}", "--env.task=reach-moving", "--accel.episodes=1",
             "--accel.samples=2", "--accel.judged_episodes=1",
             "--accel.judged_samples=2", f"--output_dir={folder}"]  # fmt: skip
    assert main(asked) == 0
    return folder


@pytest.fixture(scope="session")
def vla_checkpoint(tmp_path_factory) -> Path:
    """A miniature CogACT that looks through Meta-World's close-up camera, with an EfficientVLA plan."""
    policy = tiny_cogact(
        input_features={"observation.images.close_up": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        max_tokens=40,
    )
    stats = {"action": statistics(np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32))}
    folder = tmp_path_factory.mktemp("checkpoint") / "vla"
    tokenizer = train_tokenizer(["Open the drawer"])
    save(policy, *make_cogact_pre_post_processors(policy.config, stats, tokenizer), folder)
    asked = ["calibrate", f"--policy.path={folder}", "--env.task=drawer-open-halfway",
             "--accel.techniques=[layer_skip,mlp_prune,patch_select,block_cache]",
             "--accel.block_cache.method=uniform", "--accel.block_cache.updates=2",
             "--accel.layer_skip.n_dropped=1", "--accel.patch_select.k_final=6", "--accel.mlp_prune.rank=2",
             "--accel.episodes=1", "--accel.samples=2", "--accel.judged_episodes=1",
             "--accel.judged_samples=2", "--env.max_steps=8"]  # fmt: skip
    assert main(asked) == 0
    return folder


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """A LeRobotDataset of a robot that nobody here has; read only."""
    return strangers_robot.record(tmp_path_factory.mktemp("recordings") / "cups")


@pytest.fixture(scope="session")
def strangers_policy(recordings, tmp_path_factory) -> Path:
    """A checkpoint that fits those recordings; read only."""
    return strangers_robot.train(recordings, tmp_path_factory.mktemp("stranger") / "policy")


@pytest.fixture
def tiny_loaded(tmp_path) -> LoadedPolicy:
    """A miniature policy of a state of 5, in a folder of its own that is saved nowhere else."""
    policy = tiny_dp_transformer()
    stats = {
        "observation.state": {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
        "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
    }
    pre, post = make_dp_transformer_pre_post_processors(policy.config, stats)
    folder = tmp_path / "policy"
    pre.save_pretrained(folder)
    post.save_pretrained(folder)
    return LoadedPolicy(folder, policy, stage(policy), pre, post, fingerprint(policy, ()))
