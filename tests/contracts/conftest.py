"""Every policy that has an adapter, as a miniature with normalised observations."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from vivace.accel.technique import CalibrationData
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.tiny import (
    tiny_clip,
    tiny_cogact,
    tiny_diffusion,
    tiny_dp_transformer,
    tiny_multi_task_dit,
    tiny_pi0_fast,
    tiny_token_vla,
)
from vivace.policies.types import Fingerprint

KEYS = ((1, 0), (2, 0), (2, 8))
POLICIES = {
    "dp_transformer": lambda clip: tiny_dp_transformer(),
    "dp_transformer-images": lambda clip: tiny_dp_transformer(images=True),
    "diffusion": lambda clip: tiny_diffusion(),
    "diffusion-images": lambda clip: tiny_diffusion(images=True),
    "multi_task_dit-diffusion": lambda clip: tiny_multi_task_dit(clip),
    "multi_task_dit-flow": lambda clip: tiny_multi_task_dit(
        clip, objective="flow_matching", num_integration_steps=10
    ),
    "cogact": lambda clip: tiny_cogact(),
    "cogact-two-cameras": lambda clip: tiny_cogact(cameras=2, guidance_scale=1.0),
    "token_vla": lambda clip: tiny_token_vla(),
    "pi0_fast": lambda clip: tiny_pi0_fast(),
    "token_vla-two-cameras": lambda clip: tiny_token_vla(cameras=2, horizon=2, n_action_steps=1),
}


@dataclass(frozen=True)
class Subject:
    """A policy, and what to run it on."""

    policy: Any
    staged: Any
    mark: Fingerprint
    data: CalibrationData


def observations(policy: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(KEYS), policy.config.n_obs_steps)
    values = {
        key: torch.rand(*shape, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
    }
    if policy.config.type in ("multi_task_dit", "cogact", "token_vla", "pi0_fast"):
        values["observation.language.tokens"] = torch.arange(16).expand(len(KEYS), 16)
        values["observation.language.attention_mask"] = torch.ones(len(KEYS), 16, dtype=torch.bool)
    return values


@pytest.fixture(scope="package", params=list(POLICIES))
def subject(request, tmp_path_factory) -> Subject:
    policy = POLICIES[request.param](tiny_clip(tmp_path_factory.mktemp("miniature")))
    staged = stage(policy)
    mark = fingerprint(policy, staged.spec.block_ids)
    return Subject(policy, staged, mark, CalibrationData(observations(policy), KEYS))
