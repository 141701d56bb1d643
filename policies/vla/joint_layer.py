"""A layer of X-VLA's head, where action tokens and context look at each other, run in three ways.

All rows; all rows, and what is kept of the context for later steps; the action tokens alone, beside that.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.xvla.soft_transformer import TransformerBlock
from torch import Tensor


class JointLayer:
    """One layer, by what its rows look at.

    Args:
        layer: lerobot's module.
        n: action tokens, the first rows.
        is_cut: the other rows are not read behind this layer: nothing is added to them.
    """

    def __init__(self, layer: TransformerBlock, n: int, is_cut: bool):
        self._layer: Any = layer
        self._n, self._is_cut = n, is_cut

    def attend(self, h: Tensor) -> Tensor:
        """What all rows (B, N, W) find at all rows."""
        return self.keeping(h)[0] if self._is_cut else self._layer.attn(self._layer.norm1(h))

    def keeping(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and keys and values (B, C, 2 W) of the context."""
        x, attention = self._layer.norm1(h), self._layer.attn
        project, width = attention.qkv, h.shape[-1]
        if not self._is_cut:
            q, kv = project(x).split((width, 2 * width), dim=-1)
            return _attended(attention, q, kv), kv[:, self._n :]
        q = F.linear(x[:, : self._n], project.weight[:width], project.bias[:width])
        kv = F.linear(x, project.weight[width:], project.bias[width:])
        return self._padded(_attended(attention, q, kv), h), kv[:, self._n :]

    def alone(self, h: Tensor, kept: Tensor) -> Tensor:
        """What the action tokens (B, H, W) find at themselves and at what was kept of the context."""
        attention, width = self._layer.attn, h.shape[-1]
        q, kv = attention.qkv(self._layer.norm1(h)).split((width, 2 * width), dim=-1)
        return _attended(attention, q, torch.cat([kv, kept], dim=1))

    def mlp(self, h: Tensor) -> Tensor:
        """What the MLP adds to all rows."""
        return self._padded(self.alone_mlp(h[:, : self._n]), h) if self._is_cut else self.alone_mlp(h)

    def alone_mlp(self, h: Tensor) -> Tensor:
        """What the MLP adds to rows that are all read."""
        return self._layer.mlp(self._layer.norm2(h))

    def _padded(self, out: Tensor, h: Tensor) -> Tensor:
        """Zeros for the rows that are not read, so that blocks of one stream give one shape."""
        return F.pad(out, (0, 0, 0, h.shape[1] - self._n))


def _attended(attention: Any, q: Tensor, kv: Tensor) -> Tensor:
    """What rows q (B, N, W) find at keys and values (B, M, 2 W), as a block adds it (B, N, W)."""
    heads = (
        rows.unflatten(-1, (-1, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        for rows in (q, kv)
    )
    (q,), (k, v) = heads
    out = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
    return attention.proj(out.transpose(1, 2).flatten(2))
