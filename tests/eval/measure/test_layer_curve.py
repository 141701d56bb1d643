"""The curve begins at no error, and is what dropping those layers gives."""

import pytest
import torch
import torch.nn.functional as F

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.layer_curve import policy_curve, text_curve
from vivace.policies.errors import PolicyNotFound
from vivace.policies.execution import as_trained
from vivace.policies.language.smollm2 import load_smollm2, prompts
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_cogact


@pytest.fixture(scope="module")
def policy():
    return tiny_cogact(language_layers=5)


@pytest.mark.parametrize("rule", ["importance", "greedy", "uniform"])
def test_curve_of_a_policy(policy, rule):
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.images.front": torch.rand(2, 1, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(48).view(2, 24),
        "observation.language.attention_mask": torch.ones(2, 24, dtype=torch.bool),
    }
    execution = as_trained(stage(policy))
    points = policy_curve(execution, CalibrationData(batch, ((0, 0), (0, 1))), rule)
    assert [point["dropped"] for point in points] == [0, 1, 2, 3, 4]
    assert points[0]["action_error"] == 0
    assert points[0]["hidden_error"] == pytest.approx(0, abs=1e-6)
    assert all(point["action_error"] > 0 for point in points[1:])


def test_curve_on_texts_is_transformers_with_layers_gone(policy):
    tokens = torch.arange(20).view(2, 10)
    is_text = torch.arange(10) < torch.tensor([[7], [10]])
    scores, points = text_curve(policy.language, tokens, is_text)
    least = scores.index(min(scores))
    h = policy.language.embed_tokens(tokens)
    angles = policy.language.rotary_emb(h, torch.arange(10)[None])
    states = []
    for skipped in (None, least):
        x = h
        for i, layer in enumerate(policy.language.layers):
            x = x if i == skipped else layer(x, position_embeddings=angles, attention_mask=None)
        states.append(policy.language.norm(x)[torch.arange(2), is_text.sum(1) - 1])
    expected = 1 - F.cosine_similarity(states[1], states[0], dim=-1).mean()
    assert points[1]["hidden_error"] == pytest.approx(float(expected), abs=1e-5)


def test_middle_layers_of_a_pretrained_model_are_the_redundant_ones():
    try:
        model, tokenizer = load_smollm2()
    except PolicyNotFound as missing:
        pytest.skip(str(missing))
    scores, _ = text_curve(model, *prompts(tokenizer, ["Open the drawer", "Push the puck to a goal"]))
    assert len(scores) == 30
    least = sorted(range(30), key=scores.__getitem__)[:6]
    assert not {0, 1, 29} & set(least)
