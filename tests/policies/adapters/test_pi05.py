"""What lerobot's pi05, and pi0, compute at their true size, counted without their weights."""

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_policy_config
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi05 import modeling_pi05
from lerobot_policies import pi_as_published

from vivace.accel.flops import count_flops
from vivace.policies.execution import as_trained
from vivace.policies.load import stage

CASES = {
    "pi05": (modeling_pi05, "PI05Policy", 60, 200, 1.6),
    "pi0": (modeling_pi0, "PI0Policy", 20, 48, 1.5),
}
"""Type -> where it is, its class, tokens of the prompt, those it is padded to, how much less is asked for."""


def true_size(kind, monkeypatch):
    """A policy of the published sizes, whose weights have no values; two cameras and an empty one."""
    module, name = CASES[kind][:2]
    pi_as_published(monkeypatch)
    cameras = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 224, 224))
        for name in ("front", "wrist")
    }
    config = make_policy_config(
        kind,
        input_features={**cameras, "observation.state": PolicyFeature(FeatureType.STATE, (7,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        empty_cameras=1,
        device="cpu",
    )
    config.device = "meta"
    with torch.device("meta"):
        return getattr(module, name)(config).eval()


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES)
def test_what_is_exact_saves_at_true_size(kind, monkeypatch):
    """A camera of three empty, 60 of 200 tokens said: pi05 2512 to 1493 GMAC; pi0, 20 of 48: 2190 to 1415."""
    policy = true_size(kind, monkeypatch)
    assert sum(p.numel() for p in policy.parameters()) > 3e9
    n, length, least = CASES[kind][2:]
    batch = {f"observation.images.{name}": torch.zeros(1, 1, 3, 224, 224) for name in ("front", "wrist")}
    batch |= {
        "observation.state": torch.zeros(1, 1, 7),
        "observation.language.tokens": torch.ones(1, length, dtype=torch.long),
        "observation.language.attention_mask": torch.arange(length)[None] < n,
    }
    staged = stage(policy)
    without = staged.without(tuple(staged.dead_work))
    exact = without.hoist(without.sampler)
    before, after = (count_flops(as_trained(it), batch) for it in (staged, exact))
    assert before.total / after.total >= least
    rows, columns = 3 * 256 + length, 2 * 256 + n
    assert before.language == 18 * layer(rows)
    assert after.language == 17 * layer(columns) + 2 * columns * 2048 * 512


def layer(rows):
    """FLOPs of a language layer: queries and output, keys and values, MLP, attention."""
    return 2 * rows * (2 * 2048 * 2048 + 2048 * 512 + 3 * 2048 * 16_384 + 2 * rows * 2048)
