"""Policies cast to bfloat16 or float16 by `.to`: what is cast on the way in, and what stays float32.

Observations are cast where a policy encodes them, x where the denoiser reads it. x itself, the sampler's
coefficients and the actions stay float32: a step adds a small correction to x, which eight bits of mantissa
would round away, and the sampler's work is nothing beside the denoiser's.
"""

from typing import Any

import torch
from torch import Tensor, nn


def dtype_of(policy: Any) -> torch.dtype:
    """Return what a lerobot policy, or a part of one, computes in: its first floating parameter's dtype."""
    parameters = policy.parameters() if hasattr(policy, "parameters") else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def cast(batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a batch whose floating tensors have a dtype; others, such as tokens and masks, are kept."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}


def embed_time(encoder: nn.Sequential, t: Tensor) -> Tensor:
    """Run a timestep encoder on t (B,): its sines, which are float32, are cast to what follows them."""
    sines, *layers = encoder
    h = sines(t).to(dtype_of(encoder))
    for layer in layers:
        h = layer(h)
    return h
