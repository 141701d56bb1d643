"""Parity: the staged ACT is lerobot's, bit for bit; what is left out changes rounding only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_itself import LeRobot, moments, ours
from lerobot_policies import build, features, saved

from vivace.accel.flops import count_flops
from vivace.policies.adapters.act import StagedACT
from vivace.policies.errors import ObservationMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.load import load_policy
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session

ALL = ("constants", "attention_weights")
WORLD = {"observation.environment_state": PolicyFeature(FeatureType.ENV, (6,))}
CASES = {
    "two cameras": {},
    "VAE": {"use_vae": True, "n_vae_encoder_layers": 1},
    "pre-norm": {"pre_norm": True},
    "seven decoder layers": {"n_decoder_layers": 3, "feedforward_activation": "gelu"},
    "one camera, no state": features(cameras=1, state=False),
    "no camera": {"input_features": features(cameras=0)["input_features"] | WORLD},
    "camera and world": {"input_features": features(cameras=1)["input_features"] | WORLD},
    "dilated": {"replace_final_stride_with_dilation": True, "vision_backbone": "resnet50"},
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def policy(request, tmp_path_factory):
    made = build("act", tmp_path_factory.mktemp("act"), **CASES[request.param])
    random = torch.Generator().manual_seed(3)
    for name, buffer in made.named_buffers():  # as trained: frozen, but not those of a ResNet just made
        if name.endswith(("running_mean", "running_var", "bias", "weight")):
            buffer.copy_(torch.rand(buffer.shape, generator=random) + 0.5)
    return made


def batch(policy, rows: int = 3) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(rows, 1, *feature.shape, generator=random)
        for key, feature in policy.config.input_features.items()
    }


def chunk(staged, observations) -> torch.Tensor:
    noise = EpisodeNoise([(i, 0) for i in range(len(next(iter(observations.values()))))])
    return sample(as_trained(staged), observations, noise)


def lerobots(policy, observations) -> torch.Tensor:
    newest = {key: value[:, 0] for key, value in observations.items()}
    newest.setdefault("observation.state", torch.zeros(3, 5))  # lerobot reads its device, of every policy
    with torch.inference_mode():
        return policy.predict_action_chunk(newest)


def test_staged_is_bit_equal_to_lerobot(policy):
    theirs = lerobots(policy, batch(policy))
    assert torch.equal(chunk(StagedACT(policy), batch(policy)), theirs)
    assert theirs.shape == (3, 8, 4)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("parts", [("constants",), ("attention_weights",), ALL], ids="+".join)
def test_what_is_left_out_changes_rounding_only(policy, parts):
    staged = StagedACT(policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    twin = staged.without(parts)
    torch.testing.assert_close(chunk(twin, batch(policy)), chunk(staged, batch(policy)), atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert torch.equal(chunk(staged, batch(policy)), lerobots(policy, batch(policy)))
    assert set(staged.dead_work) == set(ALL)


def test_the_first_self_attention_is_no_longer_computed(policy):
    """By hand: its four projections of H tokens, and H x H scores and sums of values."""
    staged, one = StagedACT(policy), batch(policy, 1)
    counts = [count_flops(as_trained(it), one) for it in (staged, staged.without(("constants",)))]
    h, d, latent = 8, 32, 8
    assert counts[0].blocks["action.0.self"] == 2 * (4 * h * d * d + 2 * h * h * d)
    assert counts[1].blocks["action.0.self"] == 0
    assert counts[0].total - counts[1].total == counts[0].blocks["action.0.self"] + 2 * latent * d
    assert counts[0].language == 0


def test_nothing_but_what_is_constant_is_constant(policy):
    """Two observations differ, in a batch and apart."""
    twin, pair = StagedACT(policy).without(ALL), batch(policy, 2)
    together = chunk(twin, pair)
    apart = [chunk(twin, {key: value[i : i + 1] for key, value in pair.items()}) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_pictures_of_another_size_are_refused_once_positions_are_computed(tmp_path):
    policy = build("act", tmp_path)
    other = {
        key: torch.rand(1, 1, 3, 96, 96) if "image" in key else value[:1]
        for key, value in batch(policy).items()
    }
    assert chunk(StagedACT(policy), other).isfinite().all()
    with pytest.raises(ObservationMismatch, match="20 tokens, those of config.json's sizes 10"):
        chunk(StagedACT(policy).without(ALL), other)


def test_there_is_no_sampler_and_nothing_to_hoist(tmp_path):
    staged = StagedACT(build("act", tmp_path))
    with pytest.raises(UnsupportedPolicy, match="'act' makes its chunk in one pass: it has no sampler"):
        staged.resample("ddim", 1)
    with pytest.raises(UnsupportedPolicy, match="'act' has no hoisted form"):
        staged.hoist(staged.sampler)


def test_temporal_ensembling_is_the_loops():
    """lerobot asks for a chunk every tick and executes the mean of all of them; so does the loop."""
    checkpoint = saved("act", temporal_ensemble_coeff=0.01, n_action_steps=1)
    loaded = load_policy(checkpoint)
    assert isinstance(loaded.staged, StagedACT)
    assert loaded.staged.spec.temporal_ensemble == 0.01
    seen = moments(loaded.staged.spec)
    found = ours(Session(loaded), seen)[:, :1]
    np.testing.assert_array_equal(found, LeRobot(checkpoint).executed(seen, 1))


def test_blocks_can_be_exchanged_everywhere(policy):
    """Each of them, those of cameras and encoder too, and then no dead work is left out any more."""
    seen: list[str] = []

    def told(block):
        def fn(*args):
            seen.append(block.id)
            return block.fn(*args)

        return replace(block, fn=fn)

    twin = StagedACT(policy).with_blocks(told)
    assert torch.equal(chunk(twin, batch(policy)), lerobots(policy, batch(policy)))
    assert {name.split(".")[0] for name in seen} >= {"encoder", "action"}
    assert seen.count("vision.0.resnet") == bool(policy.config.image_features)
    assert len(seen) == len(set(seen))
    with pytest.raises(UnsupportedPolicy, match="runs others in the place of its blocks"):
        twin.without(ALL)
