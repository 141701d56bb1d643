"""A Llama-form language model in stages over transformers' own modules.

A layer is three blocks: `language.i.kv` projects keys and values (not a branch: its output is handed on, not
added), `language.i.attn` and `language.i.mlp` are the residual branches. Keys and values are outside the
attention branch, so that whoever reuses or skips the branch leaves no hole in what later tokens look at.

Models of this form differ in how they look at keys (`Attention`), in the angles of their rotary positions,
and in what is read of the last layer's stream: all rows, the query's alone, or none (`Reads`).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.language.attention import FUSED, Attention, Look, heads, masks_of
from vivace.policies.language.layers import Layers
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import (
    Fresh,
    LayerView,
    Layout,
    PatchSelector,
    PrefixRows,
    Sight,
    keep_all,
    survivors,
    take_rows,
)

OnLayer = Callable[[Tensor, Tensor], None]
"""Told the keys and values (B, heads, S, d) of each layer, in order."""
Angles = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(rotary positions (B, S), what they are cast like) -> cosines and sines (B, S, d)."""


class Reads(Enum):
    """What is read of the stream that leaves the last layer."""

    ALL = "every row"
    QUERY = "the row of the last text token"
    NOTHING = "no row: of the last layer keys and values are enough"


def forget(keys: Tensor, values: Tensor) -> None:
    """Keep no keys and values."""
    return


class StagedLlama(Layers):
    """The layers of a `LlamaModel`, or of another model of its form such as Gemma, as blocks."""

    first_drop = 0
    """Patches may go behind any layer."""
    reads: Reads = Reads.ALL
    keys_only: frozenset[int] = frozenset()
    """Layers, counted as they run, of which keys and values alone are computed."""
    has_gated_mlps = True
    drops_early = True

    def __init__(
        self,
        model: LlamaModel,
        layers: tuple[int, ...] | None = None,
        attention: Attention = FUSED,
        angles: Angles | None = None,
    ):
        """Take a model apart.

        Args:
            model: transformers' model; its modules are used, not copied.
            layers: indices of the layers to run, ascending; all when None.
            attention: how rows look at keys.
            angles: of rotary positions; the model's own when None.
        """
        self.model: Any = model
        self.attention = attention
        self.angles: Angles = angles or (lambda positions, like: model.rotary_emb(like, positions))
        modules: list[Any] = list(model.layers)
        self.layers = tuple(range(len(modules))) if layers is None else layers
        self._layers = tuple(_layer_blocks(i, modules[i], attention) for i in self.layers)

    def with_branches(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs the branches of these layers only, ascending; keys and values of all."""
        twin = copy.copy(self)
        twin.keys_only = frozenset(range(len(self.layers))) - frozenset(kept)
        return twin

    def reading(self, reads: Reads) -> Self:
        """Return a twin that computes no more of the last layer than is read; keys and values are always."""
        twin = copy.copy(self)
        twin.reads = reads
        return twin

    def looking(self, look: Look) -> Self:
        """Return a twin whose rows look at keys so; before its blocks are replaced."""
        twin = copy.copy(self)
        twin.attention = replace(self.attention, look=look)
        twin._layers = tuple(_layer_blocks(i, self.model.layers[i], twin.attention) for i in self.layers)
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
            select: asked after each layer which patches to keep. Survivors keep their positions. It is not
                asked after a last layer of which not all is read, for nothing follows.
            keep: told each layer's keys and values, at the end: patches that are dropped may take theirs with
                them, or all layers may run anew without them (`prefix.Survivors`).
        """
        embedded, written = h, []
        places, n_visual = self._places(h, prefix), prefix.n_visual
        for index, (project, attend, feed_forward) in enumerate(self._layers):
            before = h
            keys, values = run(project, h, *places.angles)  # type: ignore[misc]  # never skipped
            if keep is not forget:
                written.append((keys, values))
            is_cut = self.reads is not Reads.ALL and index == len(self.layers) - 1
            rows = places
            if is_cut:
                if self.reads is Reads.NOTHING:
                    h = h[:, :0]
                    break
                query = prefix.query(h.shape[1])
                h, rows = take_rows(h, query), places.queries(query)
            if index not in self.keys_only:
                h = through(run, attend, h, *rows.angles, keys, values, *rows.told)
                h = through(run, feed_forward, h)
            if is_cut:
                break
            kept = select(self._view(index, before, h, prefix, keys, places, n_visual))
            if kept is not None:
                chosen = survivors(kept)
                rows_left = _rows(chosen.patches, prefix.n_before, n_visual, h.shape[1])
                n_visual = chosen.patches.shape[1]
                if chosen.early == "again":
                    shorter = _without(prefix, rows_left, n_visual)
                    return self(take_rows(embedded, rows_left), shorter, run, keep_all, keep)
                h, places = take_rows(h, rows_left), places.only(rows_left)
                if chosen.early == "drop":
                    written = [(_take(k, rows_left), _take(v, rows_left)) for k, v in written]
        for keys, values in written:
            keep(keys, values)
        return normed(self.model.norm, h)

    def renew(self, fresh: Fresh, seen: Sight, run: Runner = compute) -> Sight:
        """Read some rows where others were read before, which they look at as those were written.

        Args:
            fresh: what is read.
            seen: what was written of the others.
            run: runs the blocks.

        Returns:
            What is written now, of all rows.
        """
        h, last = fresh.h, len(self._layers) - 1
        cos, sin = self.angles(fresh.positions, h)
        masks = {mask.shape[3]: mask for mask in masks_of(self.attention, seen.there, fresh.among)}
        keys, values = [], []
        for index, (project, attend, feed_forward) in enumerate(self._layers):
            own_keys, own_values = run(project, h, cos, sin)  # type: ignore[misc]  # never skipped
            keys.append(fresh.into(seen.keys[index], own_keys))
            values.append(fresh.into(seen.values[index], own_values))
            if index == last and self.reads is Reads.NOTHING:
                break
            if index not in self.keys_only:
                mask = masks[keys[-1].shape[2]]
                h = through(run, attend, h, cos, sin, keys[-1], values[-1], mask)
                h = through(run, feed_forward, h)
        there = tuple(torch.cat([each, fresh.there], dim=1) for each in seen.there)
        position = seen.position + fresh.there.sum(1, keepdim=True)
        return Sight(tuple(keys), tuple(values), there, position)

    def query(self, hidden: Tensor, prefix: PrefixRows) -> Tensor:
        """Row (B, D) of the last text token, of what a call returned."""
        if self.reads is Reads.QUERY:
            return hidden[:, 0]
        return take_rows(hidden, prefix.query(hidden.shape[1]))[:, 0]

    def _places(self, h: Tensor, prefix: PrefixRows) -> "_Places":
        layout = prefix.layout
        positions = torch.arange(h.shape[1], device=h.device)[None] if layout is None else layout.positions
        cos, sin = self.angles(positions.expand(h.shape[0], -1), h)
        return _Places(cos, sin, self.attention).seeing(None if layout is None else layout.seen[:, None])

    def _view(
        self,
        index: int,
        before: Tensor,
        h: Tensor,
        prefix: PrefixRows,
        keys: Tensor,
        places: "_Places",
        n_visual: int,
    ) -> LayerView:
        layer = self.model.layers[self.layers[index]]

        def attention() -> Tensor:
            patches = slice(prefix.n_before, prefix.n_before + n_visual)
            rows = before[:, patches.stop :], *(angle[:, patches.stop :] for angle in places.angles)
            return _text_to_patches(layer, self.attention, rows, keys, places.seen, patches)

        return LayerView(index, before, h, prefix, attention)

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
            mask = self.attention.mask(past.mask(index, tree))
            h = through(run, attend, h, cos, sin, keys, values, mask)
            h = through(run, feed_forward, h)
        return normed(self.model.norm, h), past.written(tuple(keys_seen), tuple(values_seen))


@dataclass(frozen=True)
class _Places:
    """Where the rows of a stream stand, and what they see."""

    cos: Tensor
    """Of their rotary positions (B, S, d)."""
    sin: Tensor
    attention: Attention
    seen: Tensor | None = None
    """Which rows each row sees (B or 1, 1, S, S') bool; None: those before it."""
    mask: Tensor | None = None
    """The same, as the attention is told it."""

    @property
    def angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines."""
        return self.cos, self.sin

    @property
    def told(self) -> tuple[Tensor, ...]:
        """What a block of attention is told of what rows see; nothing if they see those before them."""
        return () if self.mask is None else (self.mask,)

    def seeing(self, seen: Tensor | None) -> "_Places":
        """Return them where rows see these."""
        return replace(self, seen=seen, mask=None if seen is None else self.attention.mask(seen))

    def only(self, rows: Tensor) -> "_Places":
        """Return those of some rows (B, K), which see no others either."""
        at = replace(self, cos=take_rows(self.cos, rows), sin=take_rows(self.sin, rows))
        if self.seen is None:
            return at
        return at.seeing(take_rows(take_rows(self.seen[:, 0], rows).mT, rows).mT[:, None])

    def queries(self, rows: Tensor) -> "_Places":
        """Return those of some rows (B, K), which see all that they saw."""
        at = replace(self, cos=take_rows(self.cos, rows), sin=take_rows(self.sin, rows))
        if self.seen is None:  # fewer queries than keys: what "before" means must be said
            return at.seeing(
                (torch.arange(self.cos.shape[1], device=rows.device) <= rows[..., None])[:, None]
            )
        return at.seeing(take_rows(self.seen[:, 0], rows)[:, None])


def normed(norm: Any, h: Tensor) -> Tensor:
    """Normalise; the norms of lerobot's Gemma also return a gate, which is None without a condition."""
    out = norm(h)
    return out[0] if isinstance(out, tuple) else out


def _layer_blocks(i: int, layer: LlamaDecoderLayer, attention: Attention) -> tuple[Block, Block, Block]:
    module: Any = layer.self_attn

    def project(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = normed(layer.input_layernorm, h)
        keys = attention.rotate(heads(module.k_proj, x, module.head_dim), cos, sin)
        return torch.stack([keys, heads(module.v_proj, x, module.head_dim)])

    def attend(
        h: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        x = normed(layer.input_layernorm, h)
        q = attention.rotate(heads(module.q_proj, x, module.head_dim), cos, sin)
        return module.o_proj(attention.look(module, q, keys, values, mask))

    def feed_forward(h: Tensor) -> Tensor:
        return layer.mlp(normed(layer.post_attention_layernorm, h))

    return (
        Block(f"language.{i}.kv", project, additive=False),
        Block(f"language.{i}.attn", attend),
        Block(f"language.{i}.mlp", feed_forward),
    )


def _text_to_patches(
    layer: LlamaDecoderLayer,
    attention: Attention,
    text: tuple[Tensor, ...],
    keys: Tensor,
    seen: Tensor | None,
    patches: slice,
) -> Tensor:
    """Attention weights of the text rows on the patches (B, heads, L, patches), from the layer's own keys.

    Args:
        layer: whose.
        attention: how it looks at keys.
        text: stream that enters the layer, cosines and sines, of the text rows, which are the last.
        keys: of all rows.
        seen: which rows each row sees; None: those before it.
        patches: their rows.
    """
    module: Any = layer.self_attn
    h, cos, sin = text
    x = normed(layer.input_layernorm, h)
    q = attention.rotate(heads(module.q_proj, x, module.head_dim), cos, sin)
    scores = q @ keys.repeat_interleave(module.num_key_value_groups, dim=1).mT * module.scaling
    if seen is None:
        rows = torch.arange(keys.shape[2], device=h.device)
        seen = (rows[:, None] >= rows)[None, None]
    hidden = ~seen[..., patches.stop :, :]
    return scores.float().masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()[..., patches]


def _without(prefix: PrefixRows, rows: Tensor, n_visual: int) -> PrefixRows:
    """What is left of a prefix of which some rows (B, S') stay, where they stood."""
    layout = prefix.layout or Layout.causal(
        int(prefix.n_before + prefix.n_visual + prefix.is_text.shape[1]), rows.device
    )
    positions = take_rows(layout.positions[..., None], rows)[..., 0]
    seen = take_rows(take_rows(layout.seen, rows).mT, rows).mT
    return replace(prefix, n_patches=(n_visual,), layout=Layout(positions, seen))


def _take(heads: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, S') of keys or values (B, heads, S, d)."""
    return heads.gather(2, rows[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3]))


def _rows(kept: Tensor, n_before: int, n_visual: int, length: int) -> Tensor:
    """Indices (B, S') of the tokens before the patches, the kept patches and all the text among S tokens."""
    batch = kept.shape[0]
    before = torch.arange(n_before, device=kept.device).expand(batch, -1)
    text = torch.arange(n_before + n_visual, length, device=kept.device).expand(batch, -1)
    return torch.cat([before, n_before + kept, text], dim=1)
