"""A Llama-form language model in stages over transformers' own modules.

A layer is three blocks: `language.i.kv` projects keys and values (not a branch: its output is handed on, not
added), `language.i.attn` and `language.i.mlp` are the residual branches. Keys and values are outside the
attention branch, so that whoever reuses or skips the branch leaves no hole in what later tokens look at.
"""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, rotate_half

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import LayerView, PatchSelector, PrefixRows, keep_all, take_rows

OnLayer = Callable[[Tensor, Tensor], None]
"""Told the keys and values (B, heads, S, d) of each layer, in order."""


def forget(keys: Tensor, values: Tensor) -> None:
    """Keep no keys and values."""
    return


class StagedLlama:
    """The layers of a `LlamaModel`, or of another model of its form such as Gemma, as blocks."""

    first_drop = 0
    """Patches may go behind any layer."""

    def __init__(self, model: LlamaModel, layers: tuple[int, ...] | None = None):
        """Take a model apart.

        Args:
            model: transformers' model; its modules are used, not copied.
            layers: indices of the layers to run, ascending; all when None.
        """
        self.model: Any = model
        modules: list[Any] = list(model.layers)
        self.layers = tuple(range(len(modules))) if layers is None else layers
        self._layers = tuple(_layer_blocks(i, modules[i]) for i in self.layers)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block, in the order they run."""
        return tuple(block for layer in self._layers for block in layer)

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared."""
        twin = copy.copy(self)
        twin._layers = tuple((fn(kv), fn(attn), fn(mlp)) for kv, attn, mlp in self._layers)
        return twin

    def with_layers(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs these layers only, ascending indices of those that run here."""
        twin = copy.copy(self)
        twin.layers = tuple(self.layers[i] for i in kept)
        twin._layers = tuple(self._layers[i] for i in kept)
        return twin

    def __call__(
        self,
        h: Tensor,
        prefix: PrefixRows,
        run: Runner = compute,
        select: PatchSelector = keep_all,
        keep: OnLayer = forget,
    ) -> Tensor:
        """Return the final normalised stream (B, S', D); S' < S once patches were dropped.

        Args:
            h: embeddings (B, S, D) of BOS, patches and text.
            prefix: what they are.
            run: runs the blocks.
            select: asked after each layer which patches to keep. Survivors keep their positions.
            keep: told each layer's keys and values.
        """
        layout = prefix.layout
        positions = torch.arange(h.shape[1], device=h.device)[None] if layout is None else layout.positions
        cos, sin = self.angles(positions.expand(h.shape[0], -1), h)
        seen = None if layout is None else layout.seen[:, None]
        n_visual = prefix.n_visual
        for index, (layer, (project, attend, feed_forward)) in enumerate(
            zip(self.layers, self._layers, strict=True)
        ):
            before, angles, mask = h, (cos, sin), seen
            keys, values = run(project, h, cos, sin)  # type: ignore[misc]  # never skipped
            keep(keys, values)
            h = through(run, attend, h, cos, sin, keys, values, *(() if seen is None else (seen,)))
            h = through(run, feed_forward, h)

            def attention(
                layer: int = layer,
                before: Tensor = before,
                keys: Tensor = keys,
                angles: tuple[Tensor, Tensor] = angles,
                mask: Tensor | None = mask,
                n: int = n_visual,
            ) -> Tensor:
                patches = slice(prefix.n_before, prefix.n_before + n)
                return _text_to_patches(self.model.layers[layer], before, keys, *angles, mask, patches)

            kept = select(LayerView(index, before, h, prefix, attention))
            if kept is not None:
                rows = _rows(kept, prefix.n_before, n_visual, h.shape[1])
                h, cos, sin = (take_rows(x, rows) for x in (h, cos, sin))
                if seen is not None:
                    square = take_rows(take_rows(seen[:, 0], rows).mT, rows).mT
                    seen = square[:, None]
                n_visual = kept.shape[1]
        return normed(self.model.norm, h)

    def extend(
        self, h: Tensor, past: Past, tree: Tensor, depth: Tensor, run: Runner = compute
    ) -> tuple[Tensor, Past]:
        """Read T more tokens behind what was read.

        Args:
            h: their embeddings (B, T, D).
            past: keys and values of what was read, with room for T more.
            tree: which of the T tokens each of them sees, (B or 1, T, T) bool, itself included.
            depth: how far behind the last kept token each of them stands, (B or 1, T), from 0.
            run: runs the blocks.

        Returns:
            The final normalised stream (B, T, D), and the past with the T rows written but not kept.
        """
        cos, sin = self.angles(past.next_position[:, None] + depth, h)
        keys_seen, values_seen = [], []
        for index, (project, attend, feed_forward) in enumerate(self._layers):
            keys, values = run(project, h, cos, sin)  # type: ignore[misc]  # never skipped
            keys, values = past.write(index, keys, values)
            keys_seen.append(keys)
            values_seen.append(values)
            h = through(run, attend, h, cos, sin, keys, values, past.mask(index, tree))
            h = through(run, feed_forward, h)
        return normed(self.model.norm, h), past.written(tuple(keys_seen), tuple(values_seen))

    def angles(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, S, d) of rotary positions (B, S)."""
        return self.model.rotary_emb(like, positions)


def normed(norm: Any, h: Tensor) -> Tensor:
    """Normalise; the norms of lerobot's Gemma also return a gate, which is None without a condition."""
    out = norm(h)
    return out[0] if isinstance(out, tuple) else out


def _layer_blocks(i: int, layer: LlamaDecoderLayer) -> tuple[Block, Block, Block]:
    attention: Any = layer.self_attn

    def project(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = normed(layer.input_layernorm, h)
        keys = _rotate(_split(attention.k_proj, x, layer), cos, sin)
        return torch.stack([keys, _split(attention.v_proj, x, layer)])

    def attend(
        h: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        q = _rotate(_split(attention.q_proj, normed(layer.input_layernorm, h), layer), cos, sin)
        out = F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=seen,
            is_causal=seen is None,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        return attention.o_proj(out.transpose(1, 2).flatten(2))

    def feed_forward(h: Tensor) -> Tensor:
        return layer.mlp(normed(layer.post_attention_layernorm, h))

    return (
        Block(f"language.{i}.kv", project, additive=False),
        Block(f"language.{i}.attn", attend),
        Block(f"language.{i}.mlp", feed_forward),
    )


def _split(proj: Any, x: Tensor, layer: LlamaDecoderLayer) -> Tensor:
    return proj(x).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + rotate_half(x) * sin[:, None]


def _text_to_patches(
    layer: LlamaDecoderLayer,
    h: Tensor,
    keys: Tensor,
    cos: Tensor,
    sin: Tensor,
    seen: Tensor | None,
    patches: slice,
) -> Tensor:
    """Attention weights of the text rows on the patches (B, heads, L, patches), from the layer's own keys."""
    attention, text, length = layer.self_attn, slice(patches.stop, None), h.shape[1]
    x = normed(layer.input_layernorm, h[:, text])
    q = _rotate(_split(attention.q_proj, x, layer), cos[:, text], sin[:, text])
    k = keys.repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = q @ k.mT * attention.scaling
    if seen is None:
        rows = torch.arange(length, device=h.device)
        seen = (rows[:, None] >= rows)[None, None]
    weights = scores.float().masked_fill(~seen[..., text, :], -torch.inf).softmax(-1).nan_to_num()
    return weights[..., patches]


def _rows(kept: Tensor, n_before: int, n_visual: int, length: int) -> Tensor:
    """Indices (B, S') of the tokens before the patches, the kept patches and all the text among S tokens."""
    batch = kept.shape[0]
    before = torch.arange(n_before, device=kept.device).expand(batch, -1)
    text = torch.arange(n_before + n_visual, length, device=kept.device).expand(batch, -1)
    return torch.cat([before, n_before + kept, text], dim=1)
