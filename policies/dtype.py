"""Policies cast to bfloat16 or float16 by `.to`: what is cast on the way in, and what stays float32.

Observations are cast where a policy encodes them, x where the denoiser reads it. x itself, the sampler's
coefficients and the actions stay float32: a step adds a small correction to x, which eight bits of mantissa
would round away, and the sampler's work is nothing beside the denoiser's.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vivace.policies.placement import Placement


def dtype_of(policy: Any) -> torch.dtype:
    """Return what a lerobot policy, or a part of one, computes in."""
    return Placement.of(policy).dtype


def wide(x: Tensor) -> Tensor:
    """Return what is to be compared or summed, in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cast_weights(policy: nn.Module, dtype: torch.dtype) -> None:
    """Cast a policy in place; rotary frequencies stay as they are.

    A frequency of eight bits times a position of some hundreds is wrong by whole radians.
    """
    frequencies = {name: buffer for name, buffer in policy.named_buffers() if name.endswith("inv_freq")}
    policy.to(dtype)
    for name, buffer in frequencies.items():
        owner, _, leaf = name.rpartition(".")
        policy.get_submodule(owner)._buffers[leaf] = buffer


def cast_once[Policy: nn.Module](policy: Policy, dtype: torch.dtype, others: Iterable[Tensor] = ()) -> Policy:
    """Copy a policy whose matrices are what autocast would make of them at every use.

    All other tensors are shared. A matrix that is a table of embeddings too stays: that is read as it is.

    Args:
        policy: what is run under autocast.
        dtype: of autocast.
        others: further parameters that enter products of matrices alone.
    """
    layers = [it for it in policy.modules() if isinstance(it, nn.Linear | nn.Conv3d)]
    matrices = [*others, *(tensor for layer in layers for tensor in layer.parameters(recurse=False))]
    tables = {id(it.weight) for it in policy.modules() if isinstance(it, nn.Embedding)}
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*policy.parameters(), *policy.buffers())}
    for tensor in matrices:
        if id(tensor) not in tables:
            memo[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(policy, memo)


def cast(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a batch whose floating tensors have a dtype; others, such as tokens, masks, texts, are kept."""
    return {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in batch.items()
    }


def embed_time(encoder: nn.Sequential, t: Tensor) -> Tensor:
    """Run a timestep encoder on t (B,): its sines, which are float32, are cast to what follows them."""
    sines, *layers = encoder
    h = sines(t).to(dtype_of(encoder))
    for layer in layers:
        h = layer(h)
    return h
