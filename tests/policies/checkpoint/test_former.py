"""A4: checkpoints of earlier lerobots, whose statistics are among the weights, act as they were saved."""

import lerobot_policies
import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot_itself import moments
from safetensors.torch import load_file, save_file

from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_diffusion

STATISTICS = {
    "observation.state": {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
    "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
}


def buffers(statistics, names=("min", "max")):
    """The names that lerobot had for them, until 0.3."""
    found = {}
    for key, values in statistics.items():
        parts = ["normalize_targets", "unnormalize_outputs"] if key == "action" else ["normalize_inputs"]
        for part in parts:
            for name, value in ((name, values[name]) for name in names):
                found[f"{part}.buffer_{key.replace('.', '_')}.{name}"] = value.clone()
    return found


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """A checkpoint of lerobot's diffusion, with processors."""
    folder = tmp_path_factory.mktemp("today")
    policy = tiny_diffusion()
    policy.config.normalization_mapping = policy.config.normalization_mapping | {"ENV": "MIN_MAX"}
    policy.save_pretrained(folder)
    for pipeline in make_diffusion_pre_post_processors(policy.config, all_statistics()):
        pipeline.save_pretrained(folder)
    return folder


def all_statistics():
    environment = {"min": torch.zeros(4), "max": torch.full((4,), 4.0)}
    return STATISTICS | {"observation.environment_state": environment}


@pytest.fixture
def former(today, tmp_path):
    """The same as lerobot 0.3 would have saved it."""
    weights = load_file(today / "model.safetensors")
    save_file(weights | buffers(all_statistics()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((today / "config.json").read_text())
    return tmp_path


def test_it_acts_as_with_processors(today, former):
    seen = {
        "observation.state": np.full((1, 2, 5), 0.5, np.float32),
        "observation.environment_state": np.full((1, 2, 4), 3.0, np.float32),
    }
    ours, theirs = (Session(load_policy(folder)).predict(seen, [(1, 0)]) for folder in (former, today))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.min() >= 10 - 1e-3


def test_pictures_and_means_are_normalised_as_with_processors(tmp_path):
    """A4: ACT, MEAN_STD, with two cameras."""
    modes = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.MEAN_STD)
    today = lerobot_policies.saved("act", normalization_mapping=modes)
    policy = load_policy(today).policy
    kept = buffers(lerobot_policies.statistics(policy.config), ("mean", "std"))
    save_file(load_file(today / "model.safetensors") | kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((today / "config.json").read_text())
    ours, theirs = (Session(load_policy(folder)) for folder in (tmp_path, today))
    (moment,) = moments(ours.spec)
    seen = {key: value[:, None] for key, value in moment.items()}
    np.testing.assert_array_equal(*(it.predict(seen, [(1, 0)]) for it in (ours, theirs)))
    assert sum("images" in key for key in seen) == 2


def test_a_compiled_policy_was_saved(today, tmp_path):
    weights = load_file(today / "model.safetensors")
    inside = {name.replace("unet.", "unet._orig_mod."): tensor for name, tensor in weights.items()}
    assert inside.keys() != weights.keys()
    save_file(inside, tmp_path / "model.safetensors")
    for file in today.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_policy(tmp_path).fingerprint == load_policy(today).fingerprint


def test_statistics_that_were_never_set_are_refused(former):
    file = former / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"unnormalize_outputs.buffer_action.max": torch.full((3,), torch.inf)}, file)
    with pytest.raises(PolicyNotFound, match="'action.max' holds NaN or infinity"):
        load_policy(former)


def test_statistics_of_what_the_policy_lacks_are_refused(former):
    file = former / "model.safetensors"
    save_file(load_file(file) | {"normalize_inputs.buffer_observation_force.min": torch.zeros(2)}, file)
    with pytest.raises(PolicyNotFound, match="buffer_observation_force.min', but config.json has no such"):
        load_policy(former)


def test_neither_processors_nor_statistics(today, tmp_path):
    """A3."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((today / name).read_bytes())
    with pytest.raises(PolicyNotFound, match="lacks policy_preprocessor.json and policy_postprocessor.json"):
        load_policy(tmp_path)


def test_a_config_from_before_policy_types(former):
    (former / "config.json").write_text('{"input_shapes": {"observation.state": [2]}, "n_obs_steps": 2}')
    with pytest.raises(PolicyNotFound, match="is of lerobot before 2025"):
        load_policy(former)
