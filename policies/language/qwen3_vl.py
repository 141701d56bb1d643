"""The text layers of Qwen3-VL in stages, over transformers' own modules.

A layer is three blocks, as of `llama`. Two things differ. Patches stand among the words, picture by picture,
and rotary positions have three parts, time, row and column (`positions`); what stands where is said by
`PrefixRows.order`. And behind each of the first layers features of the vision tower are added to the patches
(DeepStack, arXiv 2406.04334): a layer that does not run leaves its features to the one before it, and no
patch may go before the last of them was added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextModel,
    rotate_half,
)

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.language.layers import Layers
from vivace.policies.language.prefix import (
    LayerView,
    PatchSelector,
    PrefixRows,
    keep_all,
    survivors,
    take_rows,
)


class StagedQwen3VL(Layers):
    """The layers of a `Qwen3VLTextModel` as blocks."""

    has_gated_mlps = True
    drops_early = False
    """The last layer alone is read."""

    def __init__(self, model: Qwen3VLTextModel, n_joined: int):
        """Take a model apart.

        Args:
            model: transformers' model; its modules are used, not copied.
            n_joined: layers behind which features are added to the patches.
        """
        self.model: Any = model
        modules: list[Any] = list(model.layers)
        self._n_joined = min(n_joined, len(modules))
        self.layers = tuple(range(len(modules)))
        self._layers = tuple(_layer_blocks(i, module) for i, module in enumerate(modules))

    @property
    def first_drop(self) -> int:
        """The first of the layers that run behind which patches may go."""
        following = (*self.layers[1:], self._n_joined)
        return next(i for i, layer in enumerate(following) if layer >= self._n_joined)

    def __call__(
        self,
        h: Tensor,
        prefix: PrefixRows,
        positions: Tensor,
        seen: Tensor | None,
        features: Sequence[Tensor],
        run: Runner = compute,
        select: PatchSelector = keep_all,
    ) -> tuple[Tensor, PrefixRows]:
        """Return the stream behind the last layer (B, S', D), not normalised, and what its rows are.

        Args:
            h: embeddings (B, S, D) of patches and text.
            prefix: what they are, and in which order they stand.
            positions: rotary positions (3, B, S): time, row, column.
            seen: which rows each row sees (B, 1, S, S) bool; those before it when None.
            features: what is added to the patches behind each of the first layers (B, patches, D).
            run: runs the blocks.
            select: asked after each layer which patches to keep. Survivors keep their positions.

        Raises:
            UnsupportedPolicy: patches are to go before all features were added to them.
        """
        cos, sin = self.model.rotary_emb(h, positions)
        rows = _Rows(prefix, cast(Tensor, prefix.order), cos, sin, seen)
        joined = 0
        for index, (layer, (project, attend, feed_forward)) in enumerate(
            zip(self.layers, self._layers, strict=True)
        ):
            h, joined = self._join(h, rows.patches, features, joined, layer)
            before = h
            keys, values = run(project, h, rows.cos, rows.sin)  # type: ignore[misc]  # never skipped
            h = through(run, attend, h, rows.cos, rows.sin, keys, values, *rows.told)
            h = through(run, feed_forward, h)
            following = self.layers[index + 1] if index + 1 < len(self.layers) else self._n_joined
            view = LayerView(
                index, before, h, rows.prefix, rows.attention(self.model.layers[layer], before, keys)
            )
            kept = None if select is keep_all else select(view)
            h, joined = self._join(h, rows.patches, features, joined, following)
            if kept is not None:
                self._check_drop(index)
                h, rows = rows.keep(survivors(kept).patches, h)
        return h, rows.prefix

    def _join(
        self, h: Tensor, patches: Tensor, features: Sequence[Tensor], first: int, end: int
    ) -> tuple[Tensor, int]:
        """Add the features that are due before layer `end`; returns what is due next, too."""
        end = max(first, min(end, self._n_joined))
        for found in features[first:end]:
            at = patches[..., None].expand(-1, -1, h.shape[-1])
            h = h.scatter(1, at, h.gather(1, at) + found.to(h.dtype))
        return h, end

    def _check_drop(self, index: int) -> None:
        if index < self.first_drop:
            raise UnsupportedPolicy(
                f"patches are to go after layer {index}, but features of the vision tower are added to them "
                f"behind later layers (DeepStack); drop them after layer {self.first_drop} or later"
            )


@dataclass(frozen=True)
class _Rows:
    """What the rows of the stream are, where they stand, and what they see."""

    prefix: PrefixRows
    order: Tensor
    """Rows of the patches, and behind them those of the text (B, S)."""
    cos: Tensor
    """Of their rotary positions (B, S, d)."""
    sin: Tensor
    seen: Tensor | None

    @property
    def n_patches(self) -> int:
        """Patches there are."""
        return self.order.shape[1] - self.prefix.is_text.shape[1]

    @property
    def patches(self) -> Tensor:
        """Their rows (B, n)."""
        return self.order[:, : self.n_patches]

    @property
    def told(self) -> tuple[Tensor, ...]:
        """What a block of attention is told of what rows see."""
        return () if self.seen is None else (self.seen,)

    def keep(self, kept: Tensor, h: Tensor) -> tuple[Tensor, "_Rows"]:
        """Leave out all patches but these (B, k), ascending; all else stays, in its order."""
        text = self.order[:, self.n_patches :]
        rows = torch.cat([self.patches.gather(1, kept), text], dim=1).sort(dim=1).values
        is_patch = torch.zeros_like(self.order, dtype=torch.bool).scatter(1, self.patches, True)
        order = order_of(is_patch.gather(1, rows))
        seen = self.seen
        if seen is not None:
            seen = take_rows(take_rows(seen[:, 0], rows).mT, rows).mT[:, None]
        cos, sin = take_rows(self.cos, rows), take_rows(self.sin, rows)
        return take_rows(h, rows), _Rows(replace(self.prefix, order=order), order, cos, sin, seen)

    def attention(self, layer: Any, h: Tensor, keys: Tensor) -> Callable[[], Tensor]:
        """Attention weights of the text rows on the patches (B, heads, L, n), from the layer's own keys."""

        def weights() -> Tensor:
            module, text = layer.self_attn, self.order[:, self.n_patches :]
            x = layer.input_layernorm(take_rows(h, text))
            q = _rotate(_split(module, "q", x), take_rows(self.cos, text), take_rows(self.sin, text))
            scores = q @ keys.repeat_interleave(module.num_key_value_groups, dim=1).mT * module.scaling
            if self.seen is None:
                seen = text[..., None] >= torch.arange(h.shape[1], device=h.device)
            else:
                seen = take_rows(self.seen[:, 0], text)
            found = scores.float().masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num()
            at = self.patches[:, None, None].expand(*found.shape[:3], -1)
            return found.gather(-1, at)

        return weights


def order_of(is_patch: Tensor) -> Tensor:
    """Rows (B, S) of the patches, ascending, and behind them those of the text."""
    before = is_patch.long().cumsum(1)  # ONNX has no stable sort
    at = torch.arange(is_patch.shape[1], device=is_patch.device).expand_as(before)
    place = torch.where(is_patch, before - 1, before[:, -1:] + at - before)
    return torch.zeros_like(place).scatter(1, place, at)


def positions(is_patch: Tensor, is_token: Tensor, ended: Tensor, place: Tensor) -> Tensor:
    """Rotary positions (3, B, S) of a prefix: those of transformers' `get_rope_index`, without reading it.

    A word stands one behind what is before it, whatever part of the position. The patches of a picture all
    stand where a word would, plus their row and column; a picture moves what follows by its larger side.

    Args:
        is_patch: which rows are patches (B, S).
        is_token: which are not padding (B, S).
        ended: what the pictures that end among the first k patches move, k = 0..n, (n + 1,).
        place: what the patches of a row stand off their picture's start, (3, n).
    """
    is_word = is_token & ~is_patch
    patch = is_patch.long().cumsum(1) - is_patch.long()  # patches before
    base = is_word.long().cumsum(1) - is_word.long() + ended[patch]
    off = place[:, patch.clamp(max=place.shape[1] - 1)] * is_patch
    return torch.where(is_token, base + off, 0)


def mean_text(h: Tensor, prefix: PrefixRows) -> Tensor:
    """Mean (B, D) of the text's rows of a stream (B, S, D), padding left out."""
    order, is_text = cast(Tensor, prefix.order), prefix.is_text[..., None]
    return (take_rows(h, order[:, -prefix.is_text.shape[1] :]) * is_text).sum(1) / is_text.sum(1)


def causal(is_token: Tensor) -> Tensor:
    """Every row sees those before it that are not padding: of which are not (B, S), (B, 1, S, S)."""
    at = torch.arange(is_token.shape[1], device=is_token.device)
    return ((at[:, None] >= at) & is_token[:, None])[:, None]


def _layer_blocks(i: int, layer: Qwen3VLTextDecoderLayer) -> tuple[Block, Block, Block]:
    module: Any = layer.self_attn
    groups = module.num_key_value_groups

    def project(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = layer.input_layernorm(h)
        keys = _rotate(_split(module, "k", x), cos, sin)
        values = module.v_proj(x).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        return torch.stack([keys, values.to(keys.dtype)])

    def attend(
        h: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        q = _rotate(_split(module, "q", layer.input_layernorm(h)), cos, sin)
        if seen is not None:  # as transformers: with a mask torch's kernels take no groups
            keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
        out = F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=seen,
            is_causal=seen is None,
            scale=module.scaling,
            enable_gqa=seen is None,
        )
        return module.o_proj(out.transpose(1, 2).flatten(2))

    def feed_forward(h: Tensor) -> Tensor:
        return layer.mlp(layer.post_attention_layernorm(h))

    return (
        Block(f"language.{i}.kv", project, additive=False),
        Block(f"language.{i}.attn", attend),
        Block(f"language.{i}.mlp", feed_forward),
    )


def _split(module: Any, name: str, x: Tensor) -> Tensor:
    """Queries or keys (B, heads, S, d) of rows (B, S, D), normalised head by head."""
    projected = getattr(module, f"{name}_proj")(x).unflatten(-1, (-1, module.head_dim))
    return getattr(module, f"{name}_norm")(projected).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + rotate_half(x) * sin[:, None]
