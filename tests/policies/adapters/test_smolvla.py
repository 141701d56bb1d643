"""Parity: the staged smolvla is lerobot's, bit for bit, however it is configured; what is left out nobody reads."""

import pytest
import torch
from lerobot_policies import build

from vivace.policies.adapters.smolvla import StagedSmolVLA
from vivace.policies.execution import as_trained, sample
from vivace.policies.sampling.noise import EpisodeNoise

KEYS = ((1, 0), (2, 0))
MASK, TOKENS = "observation.language.attention_mask", "observation.language.tokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smolvla")


def make(folder, **changes):
    return build("smolvla", folder, **({"num_vlm_layers": 4} | changes))


def observations(policy, rows=2, length=9, seed=1):
    """Observations as lerobot's preprocessor leaves them; the prompt of row 0 is shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, 5:] = False
    values = {
        key: torch.rand(rows, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
        if "empty_camera" not in key
    }
    tokens = torch.randint(3, 290, (rows, length), generator=generator)
    return values | {TOKENS: tokens, MASK: mask}


def noise(policy, rows=2):
    config = policy.config
    return EpisodeNoise(KEYS[:rows])((rows, config.chunk_size, config.max_action_dim), torch.empty(0))


def lerobots(policy, batch):
    given = {key: value.clone() for key, value in batch.items()}
    return policy.predict_action_chunk(given, noise=noise(policy, len(batch[TOKENS])))


def with_time(batch):
    return {key: value if "language" in key or "mask" in key else value[:, None] for key, value in batch.items()}


def ours(staged, batch):
    return sample(as_trained(staged), with_time(batch), EpisodeNoise(KEYS[: len(batch[TOKENS])]))


CONFIGS = {
    "plain": {},
    "one empty camera": {"empty_cameras": 1},
    "two empty cameras": {"empty_cameras": 2},
    "special tokens": {"add_image_special_tokens": True},
    "special tokens, empty": {"add_image_special_tokens": True, "empty_cameras": 1},
    "no padding": {"resize_imgs_with_padding": None},
    "wide": {"resize_imgs_with_padding": (128, 128)},
    "self": {"attention_mode": "self_attn"},
    "all cross": {"self_attn_every_n_layers": 0},
    "every third": {"self_attn_every_n_layers": 3},
    "fewer expert layers": {"num_expert_layers": 2, "self_attn_every_n_layers": 0},
    "fewer expert layers, mixed": {"num_expert_layers": 2, "self_attn_every_n_layers": 4},
    "prefix length": {"prefix_length": 60},
    "short prefix": {"prefix_length": 10},
    "steps": {"num_steps": 7},
    "two observations": {"n_obs_steps": 2},
    "periods": {"min_period": 1e-2, "max_period": 2.0},
    "width": {"expert_width_multiplier": 0.5},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_staged_is_bit_equal_to_lerobot_and_the_exact_form_to_rounding(folder, changes):
    policy = make(folder, **changes)
    if changes.get("resize_imgs_with_padding", 0) is None:
        for feature in policy.config.input_features.values():
            feature.shape = (3, 64, 64) if len(feature.shape) == 3 else feature.shape
    batch = observations(policy)
    theirs = lerobots(policy, batch)
    staged = StagedSmolVLA(policy)
    assert torch.equal(ours(staged, batch), theirs)
    assert theirs.abs().mean() > 0.1
    exact = staged.without(tuple(name for name in staged.dead_work if name != "tail"))
    torch.testing.assert_close(ours(exact, batch), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(exact.hoist(exact.sampler), batch), theirs, atol=1e-5, rtol=0)
