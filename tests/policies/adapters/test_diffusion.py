"""Parity: the staged U-Net is lerobot's, bit for bit; hoisting changes rounding only."""

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from vivace.policies.adapters.diffusion import StagedDiffusion
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.sampling.noise import EpisodeNoise, GlobalNoise
from vivace.policies.tiny.policies import tiny_diffusion

BLOCKS = [
    *("action.down0.0", "action.down0.1", "action.down0.sample", "action.down1.0", "action.down1.1"),
    *("action.mid.0", "action.mid.1", "action.up0.0", "action.up0.1", "action.up0.sample"),
]
TWO_CAMERAS = {
    "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
}


def batch(policy, n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randn(n, policy.config.n_obs_steps, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
    }


@torch.no_grad()
def lerobot_sample(policy, observations) -> torch.Tensor:
    cameras = [observations[key] for key in policy.config.image_features]
    stacked = observations | ({"observation.images": torch.stack(cameras, dim=2)} if cameras else {})
    context = policy.diffusion._prepare_global_conditioning(stacked)
    torch.manual_seed(0)
    return policy.diffusion.conditional_sample(len(context), global_cond=context)


def staged_sample(staged, observations) -> torch.Tensor:
    torch.manual_seed(0)
    return sample(as_trained(staged), observations, GlobalNoise())


@pytest.mark.parametrize("film_scale", [True, False])
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("scheduler", ["DDPM", "DDIM"])
def test_staged_is_bit_equal_to_lerobot_and_hoisting_changes_rounding_only(scheduler, images, film_scale):
    policy = tiny_diffusion(images, noise_scheduler_type=scheduler, use_film_scale_modulation=film_scale)
    observations = batch(policy)
    theirs = lerobot_sample(policy, observations)
    staged = StagedDiffusion(policy)
    assert torch.equal(staged_sample(staged, observations), theirs)
    assert (theirs.abs() < 1).float().mean() > 0.3, "clipping hides differences"
    hoisted = staged.hoist(staged.sampler)
    torch.testing.assert_close(staged_sample(hoisted, observations), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"down_dims": (8, 16, 32)},
        {"down_dims": (16,)},
        {"num_inference_steps": 5},
        {"prediction_type": "sample", "clip_sample": False},
        {"n_obs_steps": 1},
    ],
    ids=str,
)
def test_other_architectures_and_processes(changes):
    policy = tiny_diffusion(**changes)
    staged = StagedDiffusion(policy)
    theirs = lerobot_sample(policy, batch(policy))
    assert torch.equal(staged_sample(staged, batch(policy)), theirs)
    hoisted = staged_sample(staged.hoist(staged.sampler), batch(policy))
    torch.testing.assert_close(hoisted, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("separate", [True, False])
def test_cameras_are_stacked_in_the_order_of_the_config(separate):
    policy = tiny_diffusion(input_features=TWO_CAMERAS, use_separate_rgb_encoder_per_camera=separate)
    staged = StagedDiffusion(policy)
    observations = batch(policy, n=1)
    wrist, front = "observation.images.wrist", "observation.images.front"
    swapped = observations | {wrist: observations[front], front: observations[wrist]}
    reordered = dict(reversed(observations.items()))
    assert not torch.equal(staged_sample(staged, observations), staged_sample(staged, swapped))
    assert torch.equal(staged_sample(staged, observations), staged_sample(staged, reordered))
    assert torch.equal(staged_sample(staged, observations), lerobot_sample(policy, observations))


@pytest.mark.parametrize("hoist", [False, True])
def test_every_block_runs_once_a_step_in_order(hoist, seen, spying):
    staged = StagedDiffusion(tiny_diffusion())
    if hoist:
        staged = staged.hoist(staged.sampler)
    observations = batch(staged.policy)
    sample(Denoising(staged, staged.sampler, spying), observations, GlobalNoise())
    assert list(staged.spec.block_ids) == BLOCKS
    assert not any(block.additive for block in staged.blocks)
    assert seen == BLOCKS * 10


def test_hoisted_conditions_belong_to_the_sampler_they_were_computed_for():
    staged = StagedDiffusion(tiny_diffusion())
    hoisted = staged.hoist(staged.sampler).hoist(staged.resample("ddim", 4))
    assert len(hoisted.sampler) == 4
    observations = batch(staged.policy)
    plain = sample(Denoising(staged, hoisted.sampler), observations, EpisodeNoise([(7,), (8,)]))
    twin = sample(as_trained(hoisted), observations, EpisodeNoise([(7,), (8,)]))
    torch.testing.assert_close(twin, plain, atol=1e-5, rtol=0)


def test_lerobots_policy_is_left_as_it_was():
    policy = tiny_diffusion()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    modules = list(policy.modules())
    staged = StagedDiffusion(policy)
    hoisted = staged.hoist(staged.sampler)
    observations = batch(policy)
    keys = list(observations)
    theirs = lerobot_sample(policy, observations)
    staged_sample(staged, observations)
    staged_sample(hoisted, observations)
    after = policy.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(a is b for a, b in zip(modules, policy.modules(), strict=True))
    assert list(observations) == keys
    assert torch.equal(lerobot_sample(policy, observations), theirs)


def test_building_a_miniature_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first, second = tiny_diffusion().state_dict(), tiny_diffusion().state_dict()
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resample_refuses_what_the_process_cannot_do():
    staged = StagedDiffusion(tiny_diffusion())
    assert len(staged.resample("ddim", 4)) == 4
    with pytest.raises(BadSetting, match="known samplers: ddpm, ddim"):
        staged.resample("heun", 4)
    with pytest.raises(BadSetting, match=r"choose 1\.\.10"):
        staged.resample("ddpm", 11)
