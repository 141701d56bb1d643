"""Weights: what a policy is built of is at hand, and every weight comes from its checkpoint."""

import json
import shutil
from dataclasses import replace

import lerobot_policies
import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.torch import load_file, save_file

from vivace.accel.apply import accelerate
from vivace.accel.plan import AccelerationPlan
from vivace.policies.errors import PolicyNotFound
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_dp_transformer


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copied(kind, tmp_path):
    return shutil.copytree(lerobot_policies.saved(kind), tmp_path / kind)


def refusal(folder):
    with pytest.raises(PolicyNotFound) as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_begins_without_the_weights_it_once_had(tmp_path, monkeypatch):
    """A23: the checkpoint holds its own, nothing is downloaded."""
    folder = copied("act", tmp_path)
    before = load_policy(folder)
    edit(folder, pretrained_backbone_weights="ResNet18_Weights.IMAGENET1K_V1")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    loaded = load_policy(folder)
    assert loaded.fingerprint == before.fingerprint
    assert loaded.policy.config.pretrained_backbone_weights == "ResNet18_Weights.IMAGENET1K_V1"


def _no_network(*args, **kwargs):
    raise OSError("no network")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("multi_task_dit", "vision_encoder_name"),
        ("pi0_fast", "action_tokenizer_name"),
        ("pi0_fast", "text_tokenizer_name"),
        ("smolvla", "vlm_model_name"),
        ("eo1", "vlm_base"),
        ("evo1", "vlm_model_name"),
        ("vla_jepa", "qwen_model_name"),
    ],
)
def test_what_a_policy_names_by_its_place_on_the_hub(tmp_path, kind, name):
    """A22, G8: which, and how to get it; also where lerobot's class says it otherwise."""
    folder = copied(kind, tmp_path)
    edit(folder, **{name: "somebody/clip-that-is-nowhere"})
    said = refusal(folder)
    assert f"{name}=somebody/clip-that-is-nowhere" in said
    assert "which cannot be had" in said
    assert "somebody/clip-that-is-nowhere, or write the path of a folder in its place" in said


def test_a_tokenizer_named_by_its_place_on_the_hub(tmp_path):
    """A22, G8."""
    folder = copied("multi_task_dit", tmp_path)
    file = folder / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    step = next(step for step in pipeline["steps"] if "tokenizer_name" in step.get("config", {}))
    step["config"]["tokenizer_name"] = "openai/clip-vit-base-patch16"
    file.write_text(json.dumps(pipeline))
    assert "its processors: it needs tokenizer_name=openai/clip-vit-base-patch16, which" in refusal(folder)


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    """G8: lerobot's extra is named."""
    folder = copied("smolvla", tmp_path)

    def missing(kind):
        raise ImportError("'transformers' is required but not installed.")

    monkeypatch.setattr("vivace.policies.checkpoint.weights.get_policy_class", missing)
    assert "'transformers' is required but not installed.); pip install \"lerobot[smolvla]==" in refusal(
        folder
    )


def test_a_class_that_swallows_its_failure_to_load_is_not_believed(tmp_path):
    """lerobot's pi0, pi05 and pi0_fast print that loading failed, and go on with random weights."""
    folder = copied("pi0", tmp_path)
    assert load_policy(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("action_in_proj.weight"))
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, file)
    assert f"does not fit config.json: '{name}' was not loaded" in refusal(folder)
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, file)
    assert "was not loaded" in refusal(folder) or load_policy(folder)


def test_weights_of_another_policy_are_one_line(copy):
    edit(copy, n_layer=3)
    assert "model.safetensors does not fit config.json: Error(s) in loading state_dict" in refusal(copy)


CAMERAS = {"observation.images.front": (64, 64), "observation.images.wrist": (96, 64)}


def two_sizes(**changes):
    seen = {name: PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in CAMERAS.items()}
    return tiny_dp_transformer(input_features=seen, **changes)


def test_cameras_of_two_sizes(tmp_path):
    """A15: each is encoded by itself."""
    policy = two_sizes()
    statistics = {
        name: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.2)} for name in CAMERAS
    }
    actions = {"action": {"min": torch.zeros(3), "max": torch.ones(3)}}
    policy.save_pretrained(tmp_path)
    for pipeline in make_dp_transformer_pre_post_processors(policy.config, statistics | actions):
        pipeline.save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    seen = {name: random.integers(0, 256, (1, 2, *size, 3), dtype=np.uint8) for name, size in CAMERAS.items()}
    session = Session(load_policy(tmp_path))
    chunk = session.predict(seen, [(1, 0)])
    for name in CAMERAS:
        other = session.predict(seen | {name: 255 - seen[name]}, [(1, 0)])
        assert (other != chunk).any(), f"{name} is not seen"


def test_cameras_of_two_sizes_and_one_encoder():
    """A15: refused, unless they are made equal before."""
    with pytest.raises(ValueError, match="one encoder reads them all; give resize_shape or crop_shape"):
        two_sizes(use_separate_rgb_encoder_per_camera=False)
    assert len(two_sizes(use_separate_rgb_encoder_per_camera=False, crop_shape=(56, 56)).rgb_encoders) == 1


def test_a_plan_fits_however_its_policy_is_executed(copy, low_dim):
    """A19: in config.json as by a flag; and plans of before, whose mark counted it."""
    before = load_policy(low_dim).fingerprint
    edit(copy, n_action_steps=2, device="cuda", push_to_hub=False)
    after = load_policy(copy).fingerprint
    assert after == before
    assert after.differs(before) == ()
    former = replace(after, config=after.former_config)
    assert former.config != after.config
    assert after.differs(former) == ()
    plan = AccelerationPlan(former)
    plan.check(after)
    assert accelerate(load_policy(copy).staged, plan, after).plan.fingerprint == after
    edit(copy, clip_sample=False)
    assert load_policy(copy).fingerprint.differs(before) == ("config",)
