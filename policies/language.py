"""A Llama-form language model in stages: `language.i.{attn,mlp}` over transformers' own modules."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaModel,
    apply_rotary_pos_emb,
    rotate_half,
)

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.prefix import LayerView, Prefix, TokenSelector, keep_all, take_rows


class StagedLlama:
    """The layers of a `LlamaModel` as blocks.

    Padding is on the right and attention causal, so no token sees it and no mask is needed.
    """

    def __init__(self, model: LlamaModel, layers: tuple[int, ...] | None = None):
        """Take a model apart.

        Args:
            model: transformers' model; its modules are used, not copied.
            layers: indices of the layers to run, ascending; all when None.
        """
        self.model: Any = model
        modules: list[Any] = list(model.layers)
        self.layers = tuple(range(len(modules))) if layers is None else layers
        self.blocks = tuple(block for i in self.layers for block in _layer_blocks(i, modules[i]))

    def __call__(
        self, h: Tensor, prefix: Prefix, run: Runner = compute, select: TokenSelector = keep_all
    ) -> Tensor:
        """Return the final normalised stream (B, S', D); S' < S once patches were dropped.

        Args:
            h: embeddings (B, S, D) of BOS, patches and text.
            prefix: what they are.
            run: runs the blocks.
            select: asked after each layer which patches to keep. Survivors keep their positions.
        """
        positions = torch.arange(h.shape[1], device=h.device).expand(h.shape[0], -1)
        cos, sin = self.model.rotary_emb(h, positions)
        n_visual = prefix.n_visual
        for index, layer in enumerate(self.layers):
            attend, feed_forward = self.blocks[2 * index : 2 * index + 2]
            before, angles = h, (cos, sin)
            h = through(run, attend, h, cos, sin)
            h = through(run, feed_forward, h)

            def attention(
                layer: int = layer,
                before: Tensor = before,
                angles: tuple[Tensor, Tensor] = angles,
                n: int = n_visual,
            ) -> Tensor:
                return _text_to_patches(self.model.layers[layer], before, *angles, n)

            kept = select(LayerView(index, before, h, prefix, attention))
            if kept is not None:
                rows = _rows(kept, n_visual, h.shape[1])
                h, cos, sin = (take_rows(x, rows) for x in (h, cos, sin))
                n_visual = kept.shape[1]
        return self.model.norm(h)


def _layer_blocks(i: int, layer: LlamaDecoderLayer) -> tuple[Block, Block]:
    def attend(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention = layer.self_attn
        q, k, v = _heads(layer, h, cos, sin)
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=attention.num_key_value_groups > 1
        )
        return attention.o_proj(out.transpose(1, 2).flatten(2))

    def feed_forward(h: Tensor) -> Tensor:
        return layer.mlp(layer.post_attention_layernorm(h))

    return Block(f"language.{i}.attn", attend), Block(f"language.{i}.mlp", feed_forward)


def _heads(layer: LlamaDecoderLayer, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys and values (B, heads, S, d) of the stream entering a layer."""
    attention, x = layer.self_attn, layer.input_layernorm(h)
    q, k, v = (_split(proj, x, layer) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    return q, k, v


def _split(proj: Any, x: Tensor, layer: LlamaDecoderLayer) -> Tensor:
    return proj(x).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + rotate_half(x) * sin[:, None]


def _text_to_patches(layer: LlamaDecoderLayer, h: Tensor, cos: Tensor, sin: Tensor, n_visual: int) -> Tensor:
    """Attention weights of the text rows on the patches (B, heads, L, patches)."""
    attention, x = layer.self_attn, layer.input_layernorm(h)
    first_text, length = 1 + n_visual, h.shape[1]
    text = slice(first_text, None)
    q = _rotate(_split(attention.q_proj, x[:, text], layer), cos[:, text], sin[:, text])
    k = _rotate(_split(attention.k_proj, x, layer), cos, sin)
    k = k.repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = q @ k.mT * attention.scaling
    rows = torch.arange(first_text, length, device=h.device)
    later = torch.arange(length, device=h.device) > rows[:, None]
    weights = scores.float().masked_fill(later, -torch.inf).softmax(-1)
    return weights[..., 1:first_text]


def _rows(kept: Tensor, n_visual: int, length: int) -> Tensor:
    """Indices (B, S') of BOS, the kept patches and all the text among S tokens."""
    batch = kept.shape[0]
    bos = torch.zeros(batch, 1, dtype=torch.long, device=kept.device)
    text = torch.arange(1 + n_visual, length, device=kept.device).expand(batch, -1)
    return torch.cat([bos, 1 + kept, text], dim=1)
