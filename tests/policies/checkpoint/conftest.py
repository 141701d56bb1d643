"""Small checkpoints, saved as lerobot saves them, to be damaged as people's are."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.tiny.policies import tiny_dp_transformer

STATE, CAMERA = "observation.state", "observation.images.front"
STATISTICS = {
    STATE: {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
    "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
    CAMERA: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
}


def save(policy, statistics, folder):
    """Write a checkpoint of a `dp_transformer`."""
    policy.save_pretrained(folder)
    for pipeline in make_dp_transformer_pre_post_processors(policy.config, statistics):
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def low_dim(tmp_path_factory):
    """A checkpoint of a state of 5, whose actions of 3 are between 10 and 30."""
    statistics = {key: STATISTICS[key] for key in (STATE, "action")}
    return save(tiny_dp_transformer(), statistics, tmp_path_factory.mktemp("saved") / "low_dim")


@pytest.fixture(scope="session")
def seeing(tmp_path_factory):
    """A checkpoint that looks through a camera too."""
    return save(tiny_dp_transformer(images=True), STATISTICS, tmp_path_factory.mktemp("saved") / "seeing")


@pytest.fixture
def copy(low_dim, tmp_path):
    """A copy of the one without a camera, to be damaged."""
    return shutil.copytree(low_dim, tmp_path / "policy")


@pytest.fixture
def restate():
    """Change the statistics in a folder's state files: a function of all names and tensors of one file."""

    def change(folder, what):
        files = sorted(folder.glob("policy_*processor_step_*.safetensors"))
        assert files
        for file in files:
            save_file(what(load_file(file)), file)

    return change
