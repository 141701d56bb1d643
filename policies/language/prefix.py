"""The prefix a language model reads, and the seam at which patches are dropped from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.errors import ObservationMismatch


@dataclass(frozen=True)
class Layout:
    """Where the rows of a stream stand, and what they see."""

    positions: Tensor
    """Rotary positions (B or 1, S)."""
    seen: Tensor
    """Which rows each row sees, (B or 1, S, S) bool."""

    @classmethod
    def causal(cls, length: int, device: torch.device) -> "Layout":
        """Every row sees those before it."""
        positions = torch.arange(length, device=device)
        return cls(positions[None], (positions[:, None] >= positions)[None])


@dataclass(frozen=True)
class PrefixRows:
    """What the rows of a prefix are: a first token or none, the patches of all cameras, then the text."""

    n_patches: tuple[int, ...]
    """Patches of each camera, in the order they are read."""
    is_text: Tensor
    """Which of the text tokens are not padding, (B, L) bool; the last of them is the query."""
    n_before: int = 1
    """Tokens before the patches."""
    layout: Layout | None = None
    """None: every row sees those before it, and padding is on the right, where nobody sees it."""
    order: Tensor | None = None
    """Rows of the patches, and behind them those of the text (B, S), where patches stand among the words;
    None where they stand side by side, and the text behind them."""

    @property
    def n_visual(self) -> int:
        """Patches of all cameras."""
        return sum(self.n_patches)

    @property
    def patches(self) -> slice:
        """Their rows."""
        return slice(self.n_before, self.n_before + self.n_visual)

    def patches_of(self, h: Tensor) -> Tensor:
        """The patches (B, n, D) of a stream (B, S, D)."""
        if self.order is None:
            return h[:, self.patches]
        return take_rows(h, self.order[:, : h.shape[1] - self.is_text.shape[1]])

    def is_token(self, length: int) -> Tensor:
        """Which of the rows of a stream (B, length, D) are not padding."""
        if self.order is None:
            return token_mask(self.is_text, length)
        text = self.order[:, length - self.is_text.shape[1] :]
        return torch.ones_like(self.order, dtype=torch.bool).scatter(1, text, self.is_text)

    def query(self, length: int) -> Tensor:
        """Row (B, 1) of the last text token, of a stream of `length` rows."""
        n = self.is_text.shape[1]
        places = torch.arange(n, device=self.is_text.device)
        return length - n + (places * self.is_text).amax(1, keepdim=True)


class Sight(NamedTuple):
    """What the layers of a language model wrote down of rows that they read; a tree of tensors."""

    keys: tuple[Tensor, ...]
    """Of each layer (B, heads, S_l, d)."""
    values: tuple[Tensor, ...]
    there: tuple[Tensor, ...]
    """Which of these rows may be looked at (B, S_l)."""
    position: Tensor
    """Of the first row behind them (B, 1)."""

    @property
    def n_rows(self) -> int:
        """Rows of the first layer."""
        return self.keys[0].shape[2]

    def without_last(self, n: int) -> "Sight":
        """Return it without the n rows that were read last."""
        keys, values = (
            tuple(rows[:, :, : rows.shape[2] - n] for rows in each) for each in (self.keys, self.values)
        )
        last = self.there[0][:, self.there[0].shape[1] - n :].sum(1, keepdim=True)
        there = tuple(each[:, : each.shape[1] - n] for each in self.there)
        return Sight(keys, values, there, self.position - last)


class Fresh(NamedTuple):
    """Rows to be read where others were read before: some of those once more, and some behind them."""

    h: Tensor
    """Their embeddings (B, k + T, D): k that take the place of others, T that come behind all."""
    positions: Tensor
    """Their rotary positions (B, k + T)."""
    among: Tensor
    """Which of the T each of them sees (B or 1, k + T, T) bool; of what was read before they see all."""
    there: Tensor
    """Which of the T may be looked at (B, T) bool."""
    places: Tensor | None = None
    """Whose place the k take (B, k), among the S rows that were read before; S: that of none, so that rows of
    a batch may have fewer than others. None: k is 0."""

    @classmethod
    def of(cls, h: Tensor, prefix: PrefixRows, patches: Tensor) -> "Fresh":
        """Some patches (B, k) once more, and the text, of a prefix (B, S, D) that says what its rows see."""
        layout, n = cast(Layout, prefix.layout), prefix.n_visual
        positions = layout.positions.expand(len(h), -1)
        seen = layout.seen[..., n:].expand(len(h), -1, -1)
        return cls(
            torch.cat([take_rows(h, patches), h[:, n:]], dim=1),
            torch.cat([positions.gather(1, patches), positions[:, n:]], dim=1),
            torch.cat([take_rows(seen, patches), seen[:, n:]], dim=1),
            prefix.is_text,
            patches,
        )

    def into(self, old: Tensor, own: Tensor) -> Tensor:
        """Put their keys or values (B, heads, k + T, d) to those of before (B, heads, S, d)."""
        if self.places is not None:
            k = self.places.shape[1]
            index = self.places[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[3])
            old = F.pad(old, (0, 0, 0, 1)).scatter(2, index, own[:, :, :k])[:, :, :-1]
            own = own[:, :, k:]
        return torch.cat([old, own], dim=2)


@dataclass(frozen=True)
class LayerView:
    """What a token selector may look at, after a layer."""

    index: int
    """Layers run before this one; counts the layers there are, after any deletion."""
    before: Tensor
    """Stream that entered the layer (B, S, D): first token, patches, text."""
    h: Tensor
    """Stream after it."""
    prefix: PrefixRows
    attention: Callable[[], Tensor]
    """Attention of this layer from text rows to patches, softmax over all keys, (B, heads, L, patches)."""


EARLY = ("keep", "drop", "again")
"""What becomes of the keys and values of dropped patches in the layers before."""


@dataclass(frozen=True)
class Survivors:
    """Patches that stay, and what becomes of the others where they were read already."""

    patches: Tensor
    """Ascending indices (B, K)."""
    early: str = "keep"
    """keep: their keys and values stay; drop: those go too; again: the layers run anew without them."""


class PatchSelector(Protocol):
    """Chooses which patches stay."""

    def __call__(self, view: LayerView) -> Tensor | Survivors | None:
        """Return ascending indices, among the patches, of those to keep (B, K), or None to keep them all."""


def survivors(kept: Tensor | Survivors) -> Survivors:
    """Return what a selector chose; early keys and values stay unless it says otherwise."""
    return kept if isinstance(kept, Survivors) else Survivors(kept)


def keep_all(view: LayerView) -> None:
    """Keep every patch."""
    return


def of_all_cameras(select: PatchSelector, n_patches: tuple[int, ...]) -> PatchSelector:
    """Return a selector that refuses to drop patches of an observation that lacks a camera.

    Args:
        select: it chooses among patches that it may have been told of before.
        n_patches: of each camera that somebody has.

    Raises:
        ObservationMismatch: when it is called so.
    """

    def chosen(view: LayerView) -> Tensor | Survivors | None:
        kept = select(view)
        if kept is not None and view.prefix.n_patches != n_patches:
            raise ObservationMismatch(
                f"patches are chosen among those of {len(n_patches)} cameras, the observation has "
                f"{len(view.prefix.n_patches)}; give pictures of all of them"
            )
        return kept

    return chosen


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, K) of x (B or 1, S, D), as (B, K, D)."""
    return x.expand(rows.shape[0], -1, -1).gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def token_mask(is_text: Tensor, length: int) -> Tensor:
    """Which of the `length` rows of a stream (B, length, D) are not padding; its last rows are the text."""
    mask = torch.ones(len(is_text), length, dtype=torch.bool, device=is_text.device)
    mask[:, length - is_text.shape[1] :] = is_text
    return mask
