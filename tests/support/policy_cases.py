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
SIGHT, CONVOLUTIONS, TAIL = Need.SIGHT, Need.CONVOLUTIONS, Need.TAIL
CAMERAS, RENEWAL = Need.CAMERAS, Need.RENEWAL
VLA = {LANGUAGE, GATED, STAGES, DEAD_WORK}


def _built(kind: str, **changes: Any) -> Callable[[Path], Any]:
    return lambda clip: build(kind, clip.parent / kind, **changes)


POLICIES: dict[str, tuple[Callable[[Path], Any], set[Need]]] = {
    "dp_transformer": (lambda clip: tiny_dp_transformer(), {DENOISER, STAGES, TAIL}),
    "dp_transformer-images": (lambda clip: tiny_dp_transformer(images=True), {DENOISER, SIGHT, STAGES, TAIL}),
    "diffusion": (lambda clip: tiny_diffusion(), {DENOISER, STAGES, CONVOLUTIONS}),
    "diffusion-images": (lambda clip: tiny_diffusion(images=True), {DENOISER, SIGHT, STAGES, CONVOLUTIONS}),
    "multi_task_dit-diffusion": (lambda clip: tiny_multi_task_dit(clip), {DENOISER, SIGHT, STAGES}),
    "multi_task_dit-flow": (
        lambda clip: tiny_multi_task_dit(clip, objective="flow_matching", num_integration_steps=10),
        {DENOISER, SIGHT, STAGES},
    ),
    "cogact": (lambda clip: tiny_cogact(), {DENOISER, GUIDANCE, *VLA}),
    "cogact-two-cameras": (lambda clip: tiny_cogact(cameras=2, guidance_scale=1.0), {DENOISER, *VLA}),
    "smolvla": (
        _built("smolvla", num_vlm_layers=4, num_steps=10),
        {DENOISER, Need.VISION, Need.EAGER, TAIL, SIGHT, CAMERAS, RENEWAL, *VLA},
    ),
    "pi0": (_built("pi0", num_inference_steps=10), {DENOISER, Need.VISION, SIGHT, CAMERAS, RENEWAL, *VLA}),
    "pi05": (
        _built("pi05", num_inference_steps=10, empty_cameras=1),
        {DENOISER, Need.VISION, SIGHT, CAMERAS, RENEWAL, *VLA},
    ),
    "xvla": (
        _built("xvla", num_denoising_steps=6, resize_imgs_with_padding=(32, 32)),
        {DENOISER, LANGUAGE, JOINT, DEAD_WORK, SIGHT, STAGES},
    ),
    "groot": (_built("groot", num_inference_timesteps=10), {DENOISER, SIGHT, *VLA}),
    "act": (_built("act"), {STAGES, DEAD_WORK, CAMERAS}),
    "act-pre-norm": (
        _built("act", pre_norm=True, n_decoder_layers=2, use_vae=True),
        {STAGES, DEAD_WORK, CAMERAS},
    ),
    "token_vla": (lambda clip: tiny_token_vla(), {TOKENS, *VLA}),
    "pi0_fast": (lambda clip: tiny_pi0_fast(), {TOKENS, Need.VISION, *VLA}),
    "token_vla-two-cameras": (
        lambda clip: tiny_token_vla(cameras=2, horizon=2, n_action_steps=1),
        {TOKENS, *VLA},
    ),
}
"""Name -> how it is made, and what it has."""


def qwen_observations(
    policy: Any, rows: int = len(KEYS), grid: tuple[int, int] = (8, 8), padding: int = 0
) -> dict[str, torch.Tensor]:
    """What groot's preprocessor makes of two pictures, a state and an instruction.

    Args:
        policy: lerobot's own object.
        rows: observations.
        grid: height and width of a picture in patches, before they are merged.
        padding: columns by which the first row's prompt is shorter than the others'.
    """
    random, config = torch.Generator().manual_seed(2), policy._groot_model.backbone.model.config
    vision, n = config.vision_config, grid[0] * grid[1]
    picture = [config.vision_start_token_id, *[config.image_token_id] * (n // 4), config.vision_end_token_id]
    text = torch.randint(30, 290, (rows, 9), generator=random)
    prompt = torch.tensor([20, *picture, *picture]).expand(rows, -1)
    ids = torch.cat([prompt, text], dim=1)
    mask = torch.ones_like(ids)
    if padding:
        ids[0] = torch.cat([torch.zeros(padding, dtype=torch.long), ids[0, :-padding]])
        mask[0, :padding] = 0
    size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    state_dim = policy._groot_model.config.max_state_dim
    return {
        "observation.state": torch.rand(rows, 1, 5, generator=random),
        "input_ids": ids,
        "attention_mask": mask,
        "state": torch.rand(
            rows, policy._groot_model.config.state_history_length, state_dim, generator=random
        ),
        "embodiment_id": torch.arange(rows, dtype=torch.int32) + 3,
        "pixel_values": torch.randn(rows * 2 * n, size, generator=random),
        "image_grid_thw": torch.tensor([1, *grid]).expand(rows * 2, 3).contiguous(),
    }


def observations(policy: Any) -> dict[str, torch.Tensor]:
    if policy.config.type == "groot":
        return qwen_observations(policy)
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
