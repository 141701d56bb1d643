"""Structured dropout is the identity when nothing is dropped, and really leaves out what it drops."""

import pytest
import torch

from vivace.policies.language.prefix import Layout
from vivace.policies.tiny.policies import tiny_cogact
from vivace.policies.vla import structured_dropout
from vivace.policies.vla.structured_dropout import thinned

N_VISUAL = 6


@pytest.fixture
def language():
    return tiny_cogact().language


@pytest.fixture
def stream():
    return torch.randn(5, 12, 32, generator=torch.Generator().manual_seed(0))


def thin(language, stream, layer_drop, patch_drop):
    return thinned(language, stream, N_VISUAL, layer_drop, patch_drop, Layout.causal(12, stream.device))


def plain(language, stream):
    return language(inputs_embeds=stream, use_cache=False).last_hidden_state


def test_nothing_dropped_is_the_plain_forward(language, stream):
    torch.testing.assert_close(thin(language, stream, 0.0, 0.0), plain(language, stream))


def test_rows_skip_different_layers_and_some_none(language, stream):
    torch.manual_seed(0)
    rows = stream[:1].expand(64, -1, -1)
    out = thin(language, rows, 0.5, 0.0)
    distances = (out - plain(language, stream[:1])).abs().amax((1, 2))
    assert (distances < 1e-4).any()
    assert (distances > 1e-2).any()
    assert len({round(d, 3) for d in distances.tolist()}) > 4


def test_a_hidden_patch_does_not_reach_the_text(language, stream, monkeypatch):
    monkeypatch.setattr(structured_dropout, "FIRST_LAYERS", 1)
    hidden = torch.zeros(5, N_VISUAL, dtype=torch.bool)
    hidden[:, 2] = True
    nothing = torch.zeros(5, len(language.layers), dtype=torch.bool)
    monkeypatch.setattr(structured_dropout, "random_subset", lambda batch, n, largest, like: (
        hidden if n == N_VISUAL else nothing
    ))  # fmt: skip
    short = torch.cat([stream[:, :3], stream[:, 4:]], dim=1)
    for layer in language.layers[:1]:  # before it is dropped, a patch is seen: make that layer blind to it
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    out = thin(language, stream, 0.0, 0.8)
    positions = torch.tensor([0, 1, 2, *range(4, 12)])[None]
    mask = torch.ones(5, 11)  # without one, transformers takes the gap for the start of another sequence
    expected = language(inputs_embeds=short, position_ids=positions, attention_mask=mask, use_cache=False)
    expected = expected.last_hidden_state
    torch.testing.assert_close(out[:, 4:], expected[:, 3:], atol=1e-5, rtol=0)


def test_only_training_drops(monkeypatch):
    policy = tiny_cogact(layer_drop=0.5, patch_drop=0.5)
    batch = {
        "observation.images.front": torch.rand(2, 3, 32, 32),
        "observation.language.tokens": torch.arange(16).expand(2, 16),
        "observation.language.attention_mask": torch.ones(2, 16, dtype=torch.bool),
    }
    whole = policy.cognition(batch)
    assert torch.equal(whole, policy.cognition(batch))
    policy.train()
    torch.manual_seed(1)
    assert not torch.allclose(policy.cognition(batch), whole, atol=1e-3)


def test_shares_must_be_below_one():
    with pytest.raises(ValueError, match=r"patch_drop=1\.0; needed: 0 <= patch_drop < 1"):
        tiny_cogact(patch_drop=1.0)
