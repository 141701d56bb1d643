"""A miniature SmolVLA: lerobot's own loss, begun from another VLA's weights, trained on a few images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vivace.envs.demonstrations import Demonstrations, load_demonstrations
from vivace.eval.cli import main
from vivace.eval.training.settings import SmolVLAOptions, TrainCommand
from vivace.eval.training.smolvla_recipe import flow_loss, smolvla_recipe
from vivace.eval.training.vla_recipe import present
from vivace.policies.load import load_policy

SIZES = {"image_size": 32, "patch_size": 8, "vision_layers": 1, "vision_width": 16, "vision_heads": 2,
         "vision_mlp": 59, "language_layers": 2, "language_width": 16, "language_heads": 2,
         "language_mlp": 16, "horizon": 3, "n_action_steps": 2, "num_steps": 2}  # fmt: skip
"""The width of the vision tower's MLPs is that of timm's SigLIP."""
FLAGS = ["--policy.type=smolvla", *(f"--policy.{name}={value}" for name, value in SIZES.items()),
         "--train.batch_size=2", "--train.steps=1", "--threads=1"]  # fmt: skip
TEACHER = ["--policy.type=cogact", "--policy.image_size=32", "--policy.patch_size=8", "--threads=1",
           "--policy.vision_layers=2", "--policy.vision_width=16", "--policy.language_layers=3",
           "--policy.language_width=16", "--policy.language_heads=2", "--policy.language_mlp=16",
           "--policy.action_layers=1", "--policy.action_width=16", "--policy.horizon=2",
           "--policy.n_action_steps=2", "--train.batch_size=2", "--train.steps=1"]  # fmt: skip


@pytest.fixture(scope="module")
def demonstrations():
    """Nine made-up moments of two tasks."""
    random = np.random.default_rng(0)
    return Demonstrations(
        state=random.uniform(-1, 1, (9, 39)).astype(np.float32),
        action=random.uniform(-1, 1, (9, 4)).astype(np.float32),
        episode=np.repeat([0, 1], [5, 4]),
        task=np.repeat([0, 1], [5, 4]),
        instructions=("Open the window", "Turn the faucet off"),
        images={"observation.images.close_up": random.integers(0, 255, (9, 3, 32, 32)).astype(np.uint8)},
    )


@pytest.fixture
def recipe(demonstrations, tmp_path):
    command = TrainCommand(data=[], policy=SmolVLAOptions(**SIZES, noises=3), output_dir=str(tmp_path))
    torch.manual_seed(0)
    return smolvla_recipe(demonstrations, command)


def test_the_loss_is_lerobots(recipe):
    seen, actions = recipe.windows.batch(torch.tensor([1, 6]))
    policy = recipe.policy_of(recipe.model).eval()
    batch, random = present(policy, seen), torch.Generator().manual_seed(3)
    noise, time = torch.randn(6, 3, 4, generator=random), torch.rand(6, generator=random)
    ours = flow_loss(policy, batch, actions, 3, noise, time)
    three = {key: value.repeat_interleave(3, 0) for key, value in (batch | {"action": actions}).items()}
    theirs, _ = policy.forward(three, noise, time)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_nothing_that_acts_is_frozen(recipe):
    seen, actions = recipe.windows.batch(torch.arange(9))
    recipe.loss(recipe.model, None, seen, actions).backward()
    still = {name for name, it in recipe.model.named_parameters() if it.grad is None or not it.grad.any()}
    last = "policy.model.vlm_with_expert.vlm.model.text_model.layers.1."
    unread = [f"{last}{part}.weight" for part in ("self_attn.q_proj", "self_attn.o_proj")]
    assert set(unread) <= still, "what nobody reads, of the last language layer"
    assert not [name for name in still if "expert.lm_expert" in name or "vision" in name or "state" in name]
    assert not [name for name in still if last in name and ("k_proj" in name or "v_proj" in name)]


def test_it_is_blind_to_where_things_are(recipe, demonstrations):
    seen = recipe.windows.batch(torch.arange(9))[0]["observation.state"][:, 0]
    assert seen[:, 4:].abs().max() < 1e-8
    np.testing.assert_allclose(seen[:, :4].std(0, correction=0), 1, atol=1e-3)


@pytest.mark.long
@pytest.mark.sim
def test_it_is_begun_trained_and_gone_on_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    collect = ["collect", "--env.task=window-open-halfway", "--collect.episodes=1", "--collect.image_size=32",
               "--collect.max_steps=150", "--output_dir=data"]  # fmt: skip
    assert main(collect) == 0
    assert main(["train", *TEACHER, "--data=[data]", "--output_dir=teacher"]) == 0
    begin = ["train", *FLAGS, "--data=[data]", "--backbone=teacher"]
    assert main([*begin, "--train.lr=1e-9", "--half=true", "--output_dir=flow"]) == 0
    moved = shutil.move("flow/pretrained_model", "moved")
    shutil.rmtree("flow")
    mine, theirs = load_policy(moved), load_policy("teacher")
    assert mine.policy.config.vlm_model_name == "./vlm"
    check_same_features(mine.policy, theirs.policy, load_demonstrations(Path("data"), True))
    assert (
        main(["train", *FLAGS, "--data=[data]", "--start=moved", "--train.lr=1e-9", "--output_dir=more"]) == 0
    )
    before, after = load_file("moved/model.safetensors"), load_file("more/pretrained_model/model.safetensors")
    assert {it.dtype for it in before.values()} == {torch.float16}
    assert all(torch.allclose(value.float(), after[name], atol=1e-6) for name, value in before.items())
    evaluate = ["eval", "--policy.path=more", "--env.task=window-open-halfway", "--env.max_steps=4",
                "--eval.n_episodes=1", "--output_dir=eval"]  # fmt: skip
    capsys.readouterr()
    assert main(evaluate) == 0
    assert np.isfinite(
        json.loads(capsys.readouterr().out.strip().splitlines()[-1])["runs"]["plain"]["success"]
    )
    for wrong, message in (
        ([*begin, "--policy.language_width=32"], "give the same sizes"),
        ([*begin, "--policy.language_layers=4"], "give no more layers than it has"),
        ([*begin, "--head_only=3"], "has none apart"),
        ([*begin[:-1], "--backbone=moved"], "a VLA is needed"),
    ):
        assert main([*wrong, "--output_dir=refused"]) == 2
        assert message in capsys.readouterr().err


@torch.no_grad()
def check_same_features(policy, teacher, demonstrations):
    """Its tower gives what the teacher's second one does; its connector, scaled, about what a projector."""
    image = torch.from_numpy(next(iter(demonstrations.images.values()))[:40]).float() / 255
    vlm = policy.model.vlm_with_expert.vlm.model
    behind = []
    vlm.vision_model.post_layernorm.register_forward_pre_hook(lambda _, given: behind.append(given[0]))
    tokens = policy.model.vlm_with_expert.embed_image(image * 2 - 1) * 16**0.5
    fused = teacher.vision_backbone(image)
    torch.testing.assert_close(behind[0], fused[..., 16:], atol=2e-3, rtol=1e-2)
    wanted = teacher.projector(fused)
    assert (tokens - wanted).square().mean() < 0.3 * wanted.square().mean()
