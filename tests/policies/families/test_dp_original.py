"""A state dict in the original project's layout loads, and predicts what the original formula gives."""

import pytest
import torch

from vivace.policies.errors import PolicyNotFound
from vivace.policies.families.dp_transformer.original import from_original
from vivace.policies.tiny.policies import tiny_dp_transformer


@pytest.fixture
def original():
    """What the original project saves for a small low-dimensional policy, names and shapes."""
    policy = tiny_dp_transformer(n_layer=3)
    state = {f"model.{name}": value for name, value in policy.model.state_dict().items()}
    state |= {"model._dummy_variable": torch.zeros(0), "mask_generator._dummy_variable": torch.zeros(0)}
    limits = {
        "obs": (torch.arange(5.0), torch.arange(5.0) + 2),
        "action": (-torch.ones(3), 3 * torch.ones(3)),
    }
    for key, (low, high) in limits.items():
        scale = 2 / (high - low)
        state[f"normalizer.params_dict.{key}.scale"] = scale
        state[f"normalizer.params_dict.{key}.offset"] = -1 - scale * low
        for name, value in {"min": low, "max": high, "mean": (low + high) / 2, "std": low * 0 + 1}.items():
            state[f"normalizer.params_dict.{key}.input_stats.{name}"] = value
    return policy, state


def test_network_and_normaliser_are_the_originals(original):
    policy, state = original
    loaded, preprocess, postprocess = from_original(state, n_head=4, n_action_steps=4)
    assert loaded.config.n_layer == 3
    assert (loaded.config.horizon, loaded.config.n_obs_steps) == (8, 2)
    x, t, cond = torch.randn(2, 8, 3), torch.tensor([3, 50]), torch.randn(2, 2, 5)
    assert torch.equal(loaded.model(x, t, cond), policy.model(x, t, cond))
    raw = torch.randn(1, 5)
    scale, offset = (state[f"normalizer.params_dict.obs.{n}"] for n in ("scale", "offset"))
    torch.testing.assert_close(
        preprocess({"observation.state": raw})["observation.state"], raw * scale + offset
    )
    scale, offset = (state[f"normalizer.params_dict.action.{n}"] for n in ("scale", "offset"))
    action = torch.rand(1, 3) * 2 - 1
    torch.testing.assert_close(postprocess(action), (action - offset) / scale)


def test_damaged_state_dicts_are_refused(original):
    _, state = original
    with pytest.raises(PolicyNotFound, match=r"lacks 'model\.head\.weight'"):
        from_original(
            {k: v for k, v in state.items() if k != "model.head.weight"}, n_head=4, n_action_steps=4
        )
    with pytest.raises(PolicyNotFound, match=r"Missing key\(s\) in state_dict: \"ln_f\.bias\""):
        from_original({k: v for k, v in state.items() if k != "model.ln_f.bias"}, n_head=4, n_action_steps=4)
    with pytest.raises(PolicyNotFound, match="lacks the normaliser's"):
        from_original({k: v for k, v in state.items() if "obs.scale" not in k}, n_head=4, n_action_steps=4)
