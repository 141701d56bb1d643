"""What the contract tests run: every policy in miniature, and what it has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot_policies import build

from vivace.accel.technique import Need
from vivace.policies.tiny.policies import (
    tiny_cogact,
    tiny_diffusion,
    tiny_dp_transformer,
    tiny_multi_task_dit,
    tiny_pi0_fast,
    tiny_token_vla,
)

KEYS = ((1, 0), (2, 0), (2, 8))
LANGUAGE, GUIDANCE, TOKENS, DENOISER = Need.LANGUAGE, Need.GUIDANCE, Need.TOKENS, Need.DENOISER
STAGES, GATED, JOINT, DEAD_WORK = Need.STAGES, Need.GATED, Need.JOINT, Need.DEAD_WORK
SIGHT = Need.SIGHT
VLA = {LANGUAGE, GATED, STAGES, DEAD_WORK}


def _built(kind: str, **changes: Any) -> Callable[[Path], Any]:
    return lambda clip: build(kind, clip.parent / kind, **changes)


POLICIES: dict[str, tuple[Callable[[Path], Any], set[Need]]] = {
    "dp_transformer": (lambda clip: tiny_dp_transformer(), {DENOISER, STAGES}),
    "dp_transformer-images": (lambda clip: tiny_dp_transformer(images=True), {DENOISER, SIGHT, STAGES}),
    "diffusion": (lambda clip: tiny_diffusion(), {DENOISER, STAGES}),
    "diffusion-images": (lambda clip: tiny_diffusion(images=True), {DENOISER, SIGHT, STAGES}),
    "multi_task_dit-diffusion": (lambda clip: tiny_multi_task_dit(clip), {DENOISER, SIGHT, STAGES}),
    "multi_task_dit-flow": (
        lambda clip: tiny_multi_task_dit(clip, objective="flow_matching", num_integration_steps=10),
        {DENOISER, SIGHT, STAGES},
    ),
    "cogact": (lambda clip: tiny_cogact(), {DENOISER, GUIDANCE, *VLA}),
    "cogact-two-cameras": (lambda clip: tiny_cogact(cameras=2, guidance_scale=1.0), {DENOISER, *VLA}),
    "smolvla": (_built("smolvla", num_vlm_layers=4, num_steps=10), {DENOISER, *VLA}),
    "pi0": (_built("pi0", num_inference_steps=10), {DENOISER, SIGHT, *VLA}),
    "pi05": (_built("pi05", num_inference_steps=10, empty_cameras=1), {DENOISER, *VLA}),
    "xvla": (_built("xvla", num_denoising_steps=10), {DENOISER, LANGUAGE, JOINT, DEAD_WORK, STAGES}),
    "token_vla": (lambda clip: tiny_token_vla(), {TOKENS, *VLA}),
    "pi0_fast": (lambda clip: tiny_pi0_fast(), {TOKENS, *VLA}),
    "token_vla-two-cameras": (
        lambda clip: tiny_token_vla(cameras=2, horizon=2, n_action_steps=1),
        {TOKENS, *VLA},
    ),
}
"""Name -> how it is made, and what it has."""


def observations(policy: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(KEYS), policy.config.n_obs_steps)
    values = {
        key: torch.rand(*shape, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
        if "empty_camera" not in key  # those are not given
    }
    if policy.config.type not in ("dp_transformer", "diffusion"):
        values["observation.language.tokens"] = torch.arange(16).expand(len(KEYS), 16)
        values["observation.language.attention_mask"] = torch.ones(len(KEYS), 16, dtype=torch.bool)
    return values
