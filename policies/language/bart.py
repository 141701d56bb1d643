"""A BART encoder in stages over transformers' own modules, reading patches and text, all seeing all.

As in `llama`, a layer is three blocks, `language.i.kv`, `language.i.attn` and `language.i.mlp`. BART
normalises behind its branches: the sum of the stream and a branch, also where the branch is left out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bart.modeling_bart import BartEncoder, BartEncoderLayer

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.language.layers import Layers
from vivace.policies.language.prefix import (
    LayerView,
    PatchSelector,
    PrefixRows,
    keep_all,
    survivors,
    take_rows,
)


class StagedBart(Layers):
    """The layers of a `BartEncoder` as blocks; positions are learned and added before the first."""

    has_gated_mlps = False
    first_drop = 0
    drops_early = False

    def __init__(self, model: BartEncoder, layers: tuple[int, ...] | None = None):
        """Take an encoder apart.

        Args:
            model: transformers' model; its modules are used, not copied.
            layers: indices of the layers to run, ascending; all when None.
        """
        self.model: Any = model
        modules: list[Any] = list(model.layers)
        self.layers = tuple(range(len(modules))) if layers is None else layers
        self._layers = tuple(_layer_blocks(i, modules[i]) for i in self.layers)

    def __call__(
        self, h: Tensor, prefix: PrefixRows, run: Runner = compute, select: PatchSelector = keep_all
    ) -> tuple[Tensor, Tensor | None]:
        """Return the stream (B, S', D), and which of the S rows it is of (B, S'); None: all.

        Args:
            h: embeddings (B, S, D) of patches and text.
            prefix: what they are.
            run: runs the blocks.
            select: asked after each layer which patches to keep. Survivors keep their positions.
        """
        h = self.model.layernorm_embedding(h + self.model.embed_positions(h[:, :, -1]))
        n_visual, rows = prefix.n_visual, None
        for index, (layer, (project, attend, feed_forward)) in enumerate(
            zip(self.layers, self._layers, strict=True)
        ):
            before, module = h, self.model.layers[layer]
            keys, values = run(project, h)  # type: ignore[misc]  # never skipped
            h = module.self_attn_layer_norm(through(run, attend, h, keys, values))
            h = module.final_layer_norm(through(run, feed_forward, h))

            def attention(
                module: Any = module, before: Tensor = before, keys: Tensor = keys, n: int = n_visual
            ) -> Tensor:
                return _text_to_patches(module, before, keys, n)

            kept = select(LayerView(index, before, h, prefix, attention))
            if kept is not None:
                patches = survivors(kept).patches
                text = torch.arange(n_visual, h.shape[1], device=h.device).expand(len(patches), -1)
                stay = torch.cat([patches, text], dim=1)
                h = take_rows(h, stay)
                rows = stay if rows is None else rows.gather(1, stay)
                n_visual = patches.shape[1]
        return h, rows


def _layer_blocks(i: int, layer: BartEncoderLayer) -> tuple[Block, Block, Block]:
    attention: Any = layer.self_attn

    def project(h: Tensor) -> Tensor:
        return torch.stack([_split(proj(h), attention) for proj in (attention.k_proj, attention.v_proj)])

    def attend(h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = _split(attention.q_proj(h), attention)
        out = F.scaled_dot_product_attention(q, keys, values, scale=attention.scaling)
        return attention.out_proj(out.transpose(1, 2).flatten(2))

    def feed_forward(h: Tensor) -> Tensor:
        return layer.fc2(layer.activation_fn(layer.fc1(h)))

    return (
        Block(f"language.{i}.kv", project, additive=False),
        Block(f"language.{i}.attn", attend),
        Block(f"language.{i}.mlp", feed_forward),
    )


def _split(x: Tensor, attention: Any) -> Tensor:
    return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _text_to_patches(layer: Any, h: Tensor, keys: Tensor, n_visual: int) -> Tensor:
    """Attention weights of the text rows on the patches (B, heads, L, patches), from the layer's own keys."""
    attention = layer.self_attn
    scores = _split(attention.q_proj(h[:, n_visual:]), attention) @ keys.mT * attention.scaling
    return scores.float().softmax(-1)[..., :n_visual]
