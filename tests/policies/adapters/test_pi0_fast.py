"""lerobot's pi0_fast behind the same seam: tokens are those of lerobot's own greedy loops."""

from dataclasses import replace

import pytest
import torch

from vivace.accel.techniques.jacobi import Jacobi
from vivace.policies.execution import as_trained, decode, sample
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_pi0_fast


def observations(rows=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, 9, dtype=torch.bool)
    mask[0, 5:] = False  # padding stands before BOS
    return {
        "observation.images.front": torch.rand(rows, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.randint(3, 290, (rows, 9), generator=generator),
        "observation.language.attention_mask": mask,
    }


def lerobots(policy, batch, loop="sample_actions_fast_kv_cache"):
    images, masks = policy._preprocess_images(batch)
    text, is_text = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    steps = policy.config.max_decoding_steps
    return getattr(policy.model, loop)(images, masks, text, is_text, max_decoding_steps=steps)


def noise(rows=2):
    return EpisodeNoise([(row, 0) for row in range(rows)])


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_are_lerobots(seed):
    policy = tiny_pi0_fast()
    batch = observations(seed=seed)
    expected = lerobots(policy, batch, "sample_actions_fast")
    found = decode(as_trained(stage(policy)), batch, noise())
    assert torch.equal(found.tokens, expected)
    assert torch.equal(found.tokens, lerobots(policy, batch))
    assert len(found.tokens.unique()) > 5


def test_decoding_stops_at_the_end_token(monkeypatch):
    policy = tiny_pi0_fast()
    batch = observations(rows=1)
    free = lerobots(policy, batch)
    end = int(free[0, 4])
    monkeypatch.setattr(type(policy._paligemma_tokenizer), "convert_tokens_to_ids", lambda self, token: end)
    first = int((free[0] == end).long().argmax())
    expected = lerobots(policy, batch)
    assert torch.equal(expected[0, first + 1 :], torch.zeros(11 - first, dtype=torch.long))
    execution = as_trained(stage(policy))
    found = decode(execution, batch, noise(1))
    assert torch.equal(found.tokens, expected)
    assert found.passes.item() == first
    jacobi = decode(replace(execution, decoder=Jacobi()), batch, noise(1))
    assert torch.equal(jacobi.tokens, expected)
    assert jacobi.passes <= found.passes


def test_actions_are_of_the_policys_shape():
    policy = tiny_pi0_fast()
    actions = sample(as_trained(stage(policy)), observations(), noise())
    assert actions.shape == (2, 4, 3)
    assert torch.equal(actions, policy.detokenize_actions(lerobots(policy, observations()), 4, 3))


def test_dropped_patches_equal_a_masked_forward():
    policy = tiny_pi0_fast()
    staged, batch = stage(policy), observations()
    everything = torch.arange(16).expand(2, -1)
    same = staged.encode(batch, select=lambda view: everything if view.index == 1 else None)
    torch.testing.assert_close(same.logits, staged.encode(batch).logits, atol=1e-4, rtol=0)
    kept = torch.tensor([[0, 3, 5], [1, 2, 9]])
    few = staged.encode(batch, select=lambda view: kept if view.index == 0 else None)
    assert [keys.shape[2] for keys in few.past.keys] == [26, 13, 13]
    assert (few.logits - same.logits).abs().max() > 1e-3
