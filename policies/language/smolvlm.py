"""SmolVLM's language model as lerobot's smolvla runs it: its attention and its angles, in float32."""

from typing import Any

import torch
from torch import Tensor

from vivace.policies.language.attention import Attention
from vivace.policies.language.llama import StagedLlama


def staged_language(vlm: Any) -> StagedLlama:
    """Take the language model of lerobot's `SmolVLMWithExpertModel` apart."""
    dim = vlm.config.text_config.head_dim
    return StagedLlama(
        vlm.get_vlm_model().text_model,
        attention=attention_of(vlm),
        angles=lambda positions, like: angles_at(positions, dim),
    )


def attention_of(vlm: Any) -> Attention:
    """How rows look at keys, by lerobot's own code."""

    def look(module: Any, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            raise ValueError("lerobot's smolvla looks by a mask")
        rows = (it.transpose(1, 2) for it in (q, keys, values))
        out = vlm.eager_attention_forward(mask[:, 0], len(q), module.head_dim, *rows)
        return out.to(q.dtype)

    return Attention(lambda seen: seen, look, rotated)


def angles_at(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, S, dim / 2), float32, of positions (B, S), as of lerobot's `apply_rope`."""
    exponents = (2.0 / dim) * torch.arange(dim // 2, dtype=torch.float32, device=positions.device)
    radians = positions[..., None].to(torch.float32) / (10_000**exponents)[None, None, :]
    return torch.cos(radians), torch.sin(radians)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads (B, heads, S, d), in float32, as lerobot's `apply_rope`."""
    first, second = x.transpose(1, 2).float().chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype).transpose(1, 2)
