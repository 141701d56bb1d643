"""Florence-2's DaViT over transformers' own modules, without the work on what pads its windows.

A spatial block attends inside windows of n x n tokens. Where n does not divide a stage's grid, zeros pad it,
and are projected and attended like tokens: 7 x 7 tokens in one window of 12 x 12 are 144. But the projection
of a zero is its bias, and what a padded row finds is cut off behind the block. So queries, keys and values of
padding are written down instead of multiplied, and only tokens pass the projection behind. Padding is still
looked at: leaving it out would change what tokens find.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def grids(tower: Any, size: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens (rows, columns) of a picture at each stage of a `Florence2VisionBackbone`.

    Args:
        tower: the backbone.
        size: of the picture (H, W) [px].
    """
    found, (rows, columns) = [], size
    for embed in tower.convs:
        rows, columns = (
            (n + 2 * embed.padding - embed.patch_size) // embed.stride + 1 for n in (rows, columns)
        )
        found.append((rows, columns))
    return found


def padded_stages(tower: Any, size: Sequence[int]) -> list[int]:
    """Stages whose windows are padded, for pictures of a size (H, W) [px]."""
    return [
        stage
        for stage, (grid, blocks) in enumerate(zip(grids(tower, size), tower.blocks, strict=True))
        if any(n % block.spatial_block.window_attn.window_size for block in blocks for n in grid)
    ]


def see(tower: Any, images: Tensor) -> Tensor:
    """Features (B, D, rows, columns) of images (B, 3, H, W), as the backbone's own but for rounding."""
    h = images
    for embed, blocks in zip(tower.convs, tower.blocks, strict=True):
        h = embed(h)
        for block in blocks:
            h = block.channel_block(_spatial(block.spatial_block, h))
    return h


def _spatial(block: Any, h: Tensor) -> Tensor:
    """What `Florence2VisionSpatialBlock.forward` does with (B, D, rows, columns)."""
    size = h.shape[-2:]

    def tokens(h: Tensor) -> Tensor:
        return h.flatten(2).transpose(1, 2)

    def grid(h: Tensor) -> Tensor:
        return h.transpose(1, 2).unflatten(2, size)

    h = tokens(block.conv1(h) + h)
    found = _in_windows(block.window_attn, block.norm1(h).unflatten(1, size))
    h = grid(h + block.drop_path1(found))
    h = tokens(block.conv2(h) + h)
    return grid(h + block.drop_path2(block.ffn(block.norm2(h))))


def _in_windows(attention: Any, h: Tensor) -> Tensor:
    """What tokens (B, rows, columns, D) find in their windows (B, rows * columns, D)."""
    n, (batch, rows, columns, _) = attention.window_size, h.shape
    qkv = attention.qkv(h)
    bias = qkv.new_zeros(qkv.shape[-1]) if attention.qkv.bias is None else attention.qkv.bias
    for axis, length in ((2, columns), (1, rows)):
        if length % n:
            shape = list(qkv.shape)
            shape[axis] = n - length % n
            qkv = torch.cat([qkv, bias.expand(shape)], dim=axis)
    down, across = qkv.shape[1] // n, qkv.shape[2] // n
    windows = qkv.unflatten(2, (across, n)).unflatten(1, (down, n)).transpose(2, 3)
    heads = windows.reshape(-1, n * n, 3, attention.num_heads, h.shape[-1] // attention.num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    found = scaled_dot_product_attention(q, k, v, scale=attention.scale).transpose(1, 2).flatten(2)
    found = found.unflatten(1, (n, n)).unflatten(0, (batch, down, across)).transpose(2, 3)
    found = found.flatten(3, 4).flatten(1, 2)[:, :rows, :columns]
    return attention.proj(found.flatten(1, 2))
