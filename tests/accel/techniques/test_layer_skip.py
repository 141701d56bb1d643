"""Layer importance is the paper's, measured before any final norm, and the rules keep what they say."""

import pytest
import torch
import torch.nn.functional as F

from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.layer_skip import LayerSkip, layer_importance
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_cogact


@pytest.fixture
def subject():
    policy = tiny_cogact(language_layers=6)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.images.front": torch.rand(2, 1, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(48).view(2, 24),
        "observation.language.attention_mask": torch.arange(24) < torch.tensor([[9], [24]]),
    }
    return policy, as_trained(stage(policy)), CalibrationData(batch, ((0, 0), (0, 1)))


def reference_importance(policy, batch):
    """Equation 1 with hooks on transformers' own layers."""
    streams = []
    hooks = [
        layer.register_forward_hook(
            lambda module, inputs, kwargs, out: streams.append(
                (inputs[0] if inputs else kwargs["hidden_states"], out)
            ),
            with_kwargs=True,
        )
        for layer in policy.language.layers
    ]
    with torch.no_grad():
        policy.cognition(batch)
    for hook in hooks:
        hook.remove()
    mask = batch["observation.language.attention_mask"]
    is_token = torch.cat([mask[:, :1], torch.ones(len(mask), 16, dtype=torch.bool), mask[:, 1:]], dim=1)
    scores = []
    for before, after in streams:
        cos = F.cosine_similarity(before, after, dim=-1)
        scores.append(1 - sum(float(c[m].mean()) for c, m in zip(cos, is_token, strict=True)) / len(mask))
    return scores


def test_importance_is_the_papers(subject):
    policy, execution, data = subject
    assert layer_importance(execution, data.batch) == pytest.approx(
        reference_importance(policy, data.batch), abs=1e-5
    )


def test_the_least_important_layers_go(subject):
    policy, execution, data = subject
    technique = LayerSkip.calibrate(execution, data, {"n_dropped": 2})
    scores = reference_importance(policy, data.batch)
    dropped = set(range(6)) - set(technique.kept)
    assert dropped == set(sorted(range(6), key=scores.__getitem__)[:2])
    ids = {block.id for block in technique.apply(execution).policy.language.blocks}
    assert not any(f"language.{i}.attn" in ids for i in dropped)


def test_greedy_scores_anew(subject):
    policy, execution, data = subject
    technique = LayerSkip.calibrate(execution, data, {"n_dropped": 2, "rule": "greedy"})
    scores = reference_importance(policy, data.batch)
    first = scores.index(min(scores))
    left = [i for i in range(6) if i != first]
    twin = as_trained(execution.policy.with_layers(tuple(left)))
    again = layer_importance(twin, data.batch)
    second = left[again.index(min(again))]
    assert set(range(6)) - set(technique.kept) == {first, second}


def test_uniform_keeps_both_ends(subject):
    _, execution, data = subject
    technique = LayerSkip.calibrate(execution, data, {"n_dropped": 3, "rule": "uniform"})
    assert technique.kept == (0, 2, 5)


def test_dropping_nothing_changes_nothing(subject):
    _, execution, data = subject
    technique = LayerSkip.calibrate(execution, data, {"n_dropped": 0})
    same = technique.apply(execution).policy.encode(data.batch)
    assert torch.equal(same, execution.policy.encode(data.batch))


@pytest.mark.parametrize("options", [{"n_dropped": 6}, {"n_dropped": -1}, {"rule": "magic"}])
def test_bad_options_are_refused(subject, options):
    _, execution, data = subject
    with pytest.raises(BadSetting, match="layer_skip"):
        LayerSkip.calibrate(execution, data, options)


@pytest.mark.parametrize("kept", [(), (1, 0), (0, 6), (-1, 2)])
def test_layers_that_do_not_exist_are_refused(subject, kept):
    _, execution, _ = subject
    with pytest.raises(PlanMismatch, match="language model has 6"):
        LayerSkip(kept=kept).check(execution)
