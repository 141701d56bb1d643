"""Layers of GR00T's transformers, lerobot's `BasicTransformerBlock`, as branches.

    h + attention(norm1(h)),  then  h + ff(norm3(h))

norm1 is scaled and shifted by what a timestep says where the layer is one of the denoiser's.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from lerobot.policies.groot.action_head.cross_attention_dit import AdaLayerNorm, AlternateVLDiT
from torch import Tensor

from vivace.policies.block import Block
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.step_table import StepTable


class Seen(NamedTuple):
    """What is made of pictures and instruction."""

    layers: tuple[tuple[Tensor, ...], ...]
    """What each layer of the denoiser looks at: nothing but itself, or rows (B, S, D) and which (B, S)."""
    said: Tensor
    """Mean of the text's rows (B, D)."""


class Context(NamedTuple):
    """What the denoiser is told of an observation."""

    state: Tensor
    """Its first token (B, 1, D)."""
    embodiment: Tensor
    """Which robot's weights are used (B,)."""
    seen: Seen


class Condition(NamedTuple):
    """What the denoiser is told at a step."""

    t: Tensor
    """Bucket (B,)."""
    layers: tuple[tuple[Tensor, ...], ...]
    """Of each layer: scale and shift (B, 2D) if it has them, and what it looks at."""
    last: Tensor
    """Shift and scale (B, 2D) before the last projection."""
    context: Context


def refining(i: int, layer: Any) -> tuple[Block, Block]:
    """Return the blocks of a layer of the self-attention over the context."""

    def attention(h: Tensor, *is_token: Tensor) -> Tensor:
        found: Tensor = layer.attn1(normed(layer, h), attention_mask=is_token[0] if is_token else None)
        return found

    return Block(f"context.{i}.attn", attention), Block(f"context.{i}.ff", feed_forward(layer))


def feed_forward(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return the second branch of a layer."""
    return lambda h: layer.ff(layer.norm3(h))


def is_modulated(layer: Any) -> bool:
    """Whether a layer is told the timestep."""
    return isinstance(layer.norm1, AdaLayerNorm)


def modulations(net: Any, t: Tensor) -> list[Tensor]:
    """Return scales and shifts (B, 2D) of the layers that are told the timestep t (B,), and of the end."""
    embedded = F.silu(net.timestep_encoder(t))
    linears = [layer.norm1.linear for layer in net.transformer_blocks if is_modulated(layer)]
    return [linear(embedded) for linear in (*linears, net.proj_out_1)]


def looks(net: Any) -> tuple[str, ...]:
    """Return what each layer of the denoiser looks at: itself, text, patches or all."""
    alternates = isinstance(net, AlternateVLDiT)

    def look(i: int) -> str:
        if i % 2 and net.config.interleave_self_attention:
            return "itself"
        if not alternates:
            return "all"
        return "patches" if i % (2 * net.attend_text_every_n_blocks) else "text"

    return tuple(look(i) for i in range(len(net.transformer_blocks)))


def normed(layer: Any, h: Tensor, *modulation: Tensor) -> Tensor:
    """Return what a layer's attention is given of h (B, T, D), scaled and shifted (B, 2D) if told so."""
    if modulation:
        scale, shift = modulation[0].chunk(2, dim=1)
        h = layer.norm1.norm(h) * (1 + scale[:, None]) + shift[:, None]
    else:
        h = layer.norm1(h)
    return h if layer.pos_embed is None else layer.pos_embed(h)


def attend(attention: Any, h: Tensor, *seen: Tensor) -> Tensor:
    """Return what tokens (B, T, D) see of themselves, or of rows (B, S, D) and of which of them (B, S)."""
    found: Tensor = attention(h, **dict(zip(("encoder_hidden_states", "attention_mask"), seen, strict=False)))
    return found


def attend_to_keys(attention: Any, h: Tensor, *seen: Tensor) -> Tensor:
    """Return what tokens (B, T, D) see of themselves, or of what `keyed` made of rows."""
    if not seen:
        return attend(attention, h)
    keys, values, *masks = seen
    mask = masks[0][:, None, None] if masks else None
    queries = _heads(attention.to_q, h, attention.heads)
    found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    out: Tensor = attention.to_out[0](found.transpose(1, 2).flatten(2))
    return out


def keyed(attention: Any, rows: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
    """Return keys and values (B, heads, S, d) of rows (B, S, D), and which of them are looked at."""
    return (*(_heads(project, rows, attention.heads) for project in (attention.to_k, attention.to_v)), *mask)


def _heads(project: Any, h: Tensor, heads: int) -> Tensor:
    found: Tensor = project(h).unflatten(-1, (heads, -1)).transpose(1, 2)
    return found


def in_buckets(flow: Sampler, n: int) -> Sampler:
    """A sampler of a flow with times in whole parts of n, as lerobot rounds them."""
    steps = []
    for step in flow.steps:
        table = cast(StepTable, step.table)
        bucket = int(table.t * n)
        steps.append(Step(step.index, torch.tensor(bucket), step.advance, replace(table, t=float(bucket))))
    return Sampler(flow.name, tuple(steps))
