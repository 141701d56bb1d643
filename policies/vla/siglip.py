"""A SigLIP tower in stages: transformers' own modules, in the forms of SigLIP and of SmolVLM."""

from typing import Any

import torch
from torch import Tensor

from vivace.policies.block import Block, HasBlocks, compute, through


class StagedSiglip(HasBlocks):
    """Encoder layers of a vision tower as blocks `vision.i.{attn,mlp}`, over pictures without padding."""

    def __init__(self, tower: Any):
        """Take a tower apart; its modules are used, not copied."""
        self._tower = tower
        self.blocks = tuple(
            block for i, layer in enumerate(tower.encoder.layers) for block in _layer_blocks(i, layer)
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Patches (B, N, D) of pictures (B, 3, H, W) in [-1, 1]."""
        h = self._embed(pixels.to(self._tower.dtype))
        for block in self.blocks:
            h = through(compute, block, h)
        return self._tower.post_layernorm(h)

    def _embed(self, pixels: Tensor) -> Tensor:
        """Patches and where they are, as SmolVLM's tower has it for pictures of any size."""
        embeddings = self._tower.embeddings
        patches = embeddings.patch_embedding(pixels)  # (B, D, rows, columns)
        side = embeddings.num_patches_per_side
        rows, columns = (_buckets(n, side, pixels) for n in patches.shape[2:])
        places = (rows[:, None] * side + columns).flatten()[None]
        return patches.flatten(2).transpose(1, 2) + embeddings.position_embedding(places)


def _buckets(n: int, side: int, like: Tensor) -> Tensor:
    """Which of `side` places each of n patches in a row stands at, with the rounding of SmolVLM's tower."""
    boundaries = torch.arange(1 / side, 1.0, 1 / side, device=like.device)
    width = 1.0 / torch.full((), n, device=like.device)
    at = torch.arange(n, device=like.device, dtype=torch.float32) * width
    return torch.bucketize(at.clamp(max=1.0 - 1e-6).to(like.dtype), boundaries, right=True)


def _layer_blocks(i: int, layer: Any) -> tuple[Block, Block]:
    def attend(h: Tensor) -> Tensor:
        return layer.self_attn(hidden_states=layer.layer_norm1(h), attention_mask=None)[0]

    def feed_forward(h: Tensor) -> Tensor:
        return layer.mlp(layer.layer_norm2(h))

    return Block(f"vision.{i}.attn", attend), Block(f"vision.{i}.mlp", feed_forward)
