"""Parity: the staged transformer is the network, bit for bit; hoisting changes rounding only."""

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.families.dp_transformer.staged import StagedDPTransformer
from vivace.policies.sampling.noise import EpisodeNoise, GlobalNoise
from vivace.policies.tiny.policies import tiny_dp_transformer


def batch(n: int = 3) -> dict[str, torch.Tensor]:
    return {"observation.state": torch.randn(n, 2, 5, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("scheduler", ["DDPM", "DDIM"])
@pytest.mark.parametrize("architecture", [{}, {"causal_attn": False}, {"n_cond_layers": 1}])
def test_staged_is_bit_equal_to_the_plain_loop(scheduler, architecture):
    policy = tiny_dp_transformer(noise_scheduler_type=scheduler, **architecture)
    torch.manual_seed(3)
    plain = policy.sample_actions(batch())
    torch.manual_seed(3)
    staged = sample(as_trained(StagedDPTransformer(policy)), batch(), GlobalNoise())
    assert torch.equal(plain, staged)


def test_hoisting_changes_rounding_only():
    policy = tiny_dp_transformer()
    staged = StagedDPTransformer(policy)
    keys = [(7, 0), (7, 1), (8, 0)]
    plain = sample(as_trained(staged), batch(), EpisodeNoise(keys))
    hoisted = sample(as_trained(staged.hoist(staged.sampler)), batch(), EpisodeNoise(keys))
    assert not torch.equal(plain, torch.zeros_like(plain))
    torch.testing.assert_close(hoisted, plain, atol=1e-5, rtol=0)


def test_hoisting_refuses_a_condition_encoder_that_mixes_tokens():
    staged = StagedDPTransformer(tiny_dp_transformer(n_cond_layers=1))
    with pytest.raises(UnsupportedPolicy, match="n_cond_layers > 0"):
        staged.hoist(staged.sampler)


def test_every_block_runs_once_a_step_in_order(seen, spying):
    staged = StagedDPTransformer(tiny_dp_transformer())
    sample(Denoising(staged, staged.sampler, spying), batch(), GlobalNoise())
    assert seen == list(staged.spec.block_ids) * 10
    assert seen[:3] == ["action.0.self", "action.0.cross", "action.0.mlp"]


def test_an_episode_does_not_depend_on_its_neighbours():
    staged = StagedDPTransformer(tiny_dp_transformer())
    together = sample(as_trained(staged), batch(3), EpisodeNoise([(1, 0), (2, 0), (3, 0)]))
    alone = sample(as_trained(staged), {k: v[1:2] for k, v in batch(3).items()}, EpisodeNoise([(2, 0)]))
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_resample_refuses_what_the_process_cannot_do():
    staged = StagedDPTransformer(tiny_dp_transformer())
    assert len(staged.resample("ddim", 4)) == 4
    with pytest.raises(BadSetting, match="known samplers: ddpm, ddim"):
        staged.resample("heun", 4)
    with pytest.raises(BadSetting, match=r"choose 1\.\.100"):
        staged.resample("ddpm", 101)


def seeded(ask, *given):
    torch.manual_seed(3)
    return ask(*given)


def test_a_chunk_is_had_of_a_batch_where_nothing_is_queued():
    """G9: as lerobot's policy server and its real-time chunking ask, who queue nothing."""
    policy = tiny_dp_transformer(images=True)
    generator = torch.Generator().manual_seed(1)
    moment = {
        "observation.state": torch.randn(3, 5, generator=generator),
        "observation.images.front": torch.rand(3, 3, 64, 64, generator=generator),
    }
    standing = {key: torch.stack([value, value], dim=1) for key, value in moment.items()}
    chunk = seeded(policy.predict_action_chunk, moment)
    assert chunk.shape == (3, 4, 3)
    assert torch.equal(chunk, seeded(policy.predict_action_chunk, standing))
    assert torch.equal(chunk[:, 0], seeded(policy.select_action, moment))
    moving = standing | {"observation.state": torch.randn(3, 2, 5, generator=generator)}
    assert torch.equal(seeded(policy.predict_action_chunk, moving), chunk), "what is queued comes first"
    policy.reset()
    assert not torch.equal(seeded(policy.predict_action_chunk, moving), chunk)


def test_cameras_of_different_sizes_are_refused_unless_they_are_resized():
    """A15: as lerobot's diffusion; here also where every camera's pictures are made one size."""
    sizes = {"front": (3, 64, 64), "wrist": (3, 96, 64)}
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, shape)
        for name, shape in sizes.items()
    }
    with pytest.raises(ValueError, match=r"cameras have sizes.*96.*give resize_shape"):
        tiny_dp_transformer(input_features=inputs, use_separate_rgb_encoder_per_camera=False)
    staged = StagedDPTransformer(tiny_dp_transformer(input_features=inputs, resize_shape=(64, 64)))
    seen = {f"observation.images.{name}": torch.rand(1, 2, *shape) for name, shape in sizes.items()}
    assert sample(as_trained(staged), seen, GlobalNoise()).isfinite().all()
