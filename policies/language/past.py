"""Keys and values of what a language model has read, in buffers of fixed size; never changed in place.

Behind the rows of the prompt there is room for tokens. `write` puts the rows of a block of tokens behind the
kept ones; they count only once they are kept: all up to a number (`keep`), or one path of a tree
(`keep_path`). What was written and not kept is overwritten by the next block, so nothing is ever cut off,
and every shape stays the same from pass to pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Past:
    """What was read."""

    keys: tuple[Tensor, ...]
    """Of each layer (B, heads, S_l + room, d); layers behind a token selection have fewer rows."""
    values: tuple[Tensor, ...]
    prompt: tuple[Tensor, ...]
    """Which rows of the prompt may be looked at, of each layer (B, S_l)."""
    n_positions: Tensor
    """Positions the prompt takes (B,)."""
    n_kept: Tensor
    """Tokens kept behind the prompt (B,)."""

    @classmethod
    def of(
        cls, keys: Sequence[Tensor], values: Sequence[Tensor], prompt: Sequence[Tensor], n_positions: Tensor
    ) -> "Past":
        """Begin behind a prompt, without room."""
        return cls(tuple(keys), tuple(values), tuple(prompt), n_positions, torch.zeros_like(n_positions))

    @property
    def next_position(self) -> Tensor:
        """Rotary position of the next token (B,)."""
        return self.n_positions + self.n_kept

    def with_room(self, n: int) -> "Past":
        """Make room for n tokens behind the prompt; they must not be fewer than are kept."""

        def padded(rows: Tensor, prompt: Tensor) -> Tensor:
            return F.pad(rows, (0, 0, 0, prompt.shape[1] + n - rows.shape[2]))

        return replace(
            self,
            keys=tuple(map(padded, self.keys, self.prompt)),
            values=tuple(map(padded, self.values, self.prompt)),
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's buffers with rows (B, heads, T, d) written behind the kept ones."""
        index = (
            self.prompt[layer].shape[1]
            + self.n_kept[:, None]
            + torch.arange(keys.shape[2], device=keys.device)
        )
        index = index[:, None, :, None].expand_as(keys)
        return self.keys[layer].scatter(2, index, keys), self.values[layer].scatter(2, index, values)

    def written(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> "Past":
        """Return the past with these buffers."""
        return replace(self, keys=keys, values=values)

    def mask(self, layer: int, tree: Tensor) -> Tensor:
        """Which rows of a layer's buffers T tokens see, (B, 1, T, S_l + room).

        Args:
            layer: its index.
            tree: which of the T tokens each of them sees, (B or 1, T, T).
        """
        prompt, width = self.prompt[layer], tree.shape[-1]
        room = self.keys[layer].shape[2] - prompt.shape[1]
        ahead = torch.arange(room, device=tree.device) - self.n_kept[:, None]  # (B, room); from 0: this block
        columns = ahead.clamp(0, width - 1)[:, None].expand(-1, width, -1)
        block = tree.expand(len(ahead), -1, -1).gather(2, columns)  # (B, T, room)
        tokens = (ahead < 0)[:, None] | (block & ((ahead >= 0) & (ahead < width))[:, None])
        return torch.cat([prompt[:, None].expand(-1, width, -1), tokens], dim=2)[:, None]

    def keep(self, counts: Tensor) -> "Past":
        """Keep the first of the rows just written, (B,) of them."""
        return replace(self, n_kept=self.n_kept + counts)

    def keep_path(self, path: Tensor, counts: Tensor) -> "Past":
        """Keep some of the rows just written.

        Args:
            path: their indices in the block, in order (B, m).
            counts: how many of each row of the batch count, (B,).
        """

        def moved(rows: Tensor, prompt: Tensor) -> Tensor:
            first = prompt.shape[1] + self.n_kept[:, None]
            source = (first + path)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
            target = (first + torch.arange(path.shape[1], device=path.device))[:, None, :, None]
            return rows.scatter(2, target.expand_as(source), rows.gather(2, source))

        return replace(
            self,
            keys=tuple(map(moved, self.keys, self.prompt)),
            values=tuple(map(moved, self.values, self.prompt)),
            n_kept=self.n_kept + counts,
        )
