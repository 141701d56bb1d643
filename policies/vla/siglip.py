"""A SigLIP tower in stages, over transformers' own modules, and the seam at which its patches are merged.

Behind the tower every patch is wanted again, so patches that were merged on the way are taken apart at its
end: each keeps what it was where they were merged, and takes the change of those that stand for it,

    y = W x,    x' = x + V (f(y) - y),    V = W^T with rows that sum to 1

W (M, N) says of which of the N patches each of the M is made, f are the layers behind.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from vivace.policies.block import Block, HasBlocks, compute, through


@dataclass(frozen=True)
class TowerView:
    """What may be looked at where patches are merged."""

    h: Tensor
    """Stream behind a layer (B, N, D)."""
    grid: tuple[int, int]
    """Rows and columns that the N patches stand in."""
    attention: Callable[[], Tensor]
    """What each patch is looked at in this layer, mean over heads and patches (B, N)."""


@dataclass(frozen=True)
class Merging:
    """How patches are merged on the way through a tower."""

    layer: int
    """The layer behind which they are."""
    weights: Callable[[TowerView], Tensor]
    """W (B or 1, M, N): of which patches each of the M is made; rows sum to 1."""
    is_even: bool = False
    """Each of the M stands for as many patches; else attention weighs them by how many."""


class StagedSiglip(HasBlocks):
    """Encoder layers of a vision tower as blocks `vision.i.{attn,mlp}`, over pictures without padding."""

    def __init__(self, tower: Any, places: Callable[[tuple[int, int], Tensor], Tensor]):
        """Take a tower apart; its modules are used, not copied.

        Args:
            tower: transformers' module.
            places: what places (1, N) in its table patches have that stand in so many rows and columns; it is
                given pixels too, for where and in what to compute.
        """
        self._tower, self._places = tower, places
        self._merging: Merging | None = None
        self.blocks = tuple(
            block for i, layer in enumerate(tower.encoder.layers) for block in _layer_blocks(i, layer)
        )

    @property
    def n_layers(self) -> int:
        """Layers there are."""
        return len(self.blocks) // 2

    def merging(self, merging: Merging) -> Self:
        """Return a twin that merges patches."""
        twin = copy.copy(self)
        twin._merging = merging
        return twin

    def __call__(self, pixels: Tensor) -> Tensor:
        """Patches (B, N, D) of pictures (B, 3, H, W) in [-1, 1]."""
        h, grid = self._embed(pixels.to(self._tower.dtype))
        if self._merging is None:
            return self._tower.post_layernorm(self._through(h, range(self.n_layers)))
        layer = self._merging.layer
        before = self._through(h, range(layer))
        x = self._through(before, range(layer, layer + 1))
        view = TowerView(x, grid, lambda: self._looked_at(layer, before))
        weights = self._merging.weights(view)
        back = (weights / weights.sum(1, keepdim=True)).mT  # (B or 1, N, M)
        sizes = () if self._merging.is_even else (back.sum(1).log()[:, None, None],)
        y = weights @ x
        change = self._through(y, range(layer + 1, self.n_layers), *sizes) - y
        return self._tower.post_layernorm(x + back @ change)

    def _through(self, h: Tensor, layers: range, *sizes: Tensor) -> Tensor:
        """Run some layers; `sizes` are added to what patches are looked at by."""
        for i in layers:
            attend, feed_forward = self.blocks[2 * i : 2 * i + 2]
            h = through(compute, attend, h, *sizes)
            h = through(compute, feed_forward, h)
        return h

    def _looked_at(self, layer: int, h: Tensor) -> Tensor:
        """What each patch is looked at (B, N) in a layer that a stream enters."""
        module = self._tower.encoder.layers[layer]
        x = module.layer_norm1(h)
        q, k = (
            proj(x).unflatten(-1, (-1, module.self_attn.head_dim)).transpose(1, 2)
            for proj in (module.self_attn.q_proj, module.self_attn.k_proj)
        )
        return (q @ k.mT * module.self_attn.scale).float().softmax(-1).mean((1, 2))

    def _embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches (B, N, D) and in how many rows and columns they stand."""
        embeddings = self._tower.embeddings
        patches = embeddings.patch_embedding(pixels)  # (B, D, rows, columns)
        grid = (patches.shape[2], patches.shape[3])
        places = embeddings.position_embedding(self._places(grid, pixels))
        return patches.flatten(2).transpose(1, 2) + places, grid


def _layer_blocks(i: int, layer: Any) -> tuple[Block, Block]:
    def attend(h: Tensor, sizes: Tensor | None = None) -> Tensor:
        return layer.self_attn(hidden_states=layer.layer_norm1(h), attention_mask=sizes)[0]

    def feed_forward(h: Tensor) -> Tensor:
        return layer.mlp(layer.layer_norm2(h))

    return Block(f"vision.{i}.attn", attend), Block(f"vision.{i}.mlp", feed_forward)
