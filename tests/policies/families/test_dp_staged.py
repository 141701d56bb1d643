"""Parity: the staged transformer is the network, bit for bit; hoisting changes rounding only."""

import pytest
import torch

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
