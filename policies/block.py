"""The seam every technique uses: a block of computation, and the runner that obtains its output."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

from torch import Tensor

Cache = Mapping[str, Any]
"""What one denoising step leaves to the next; never changed in place."""

EMPTY: Cache = MappingProxyType({})


@dataclass(frozen=True)
class Block:
    """One unit of computation a technique may reuse, skip, forecast, time or record."""

    id: str
    """`stage.index.branch`, e.g. "action.3.mlp"."""
    fn: Callable[..., Tensor]
    """(h, *cond) -> out; norm and gate inside. Reads weights only, so it may be called at any time."""
    additive: bool = True
    """`out` is added to the stream (a residual branch), or replaces it."""


class HasBlocks:
    """What runs blocks: `blocks` holds every one of them, and its code runs those and no others."""

    blocks: tuple[Block, ...]
    """In the order they run."""
    is_replaced: bool = False
    """Whether others run in the place of its own."""

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared."""
        twin = copy.copy(self)
        twin.blocks, twin.is_replaced = tuple(fn(block) for block in self.blocks), True
        return twin


class Runner(Protocol):
    """How a block's output is obtained at this step.

    `None` means that the stream passes unchanged: the branch is skipped, or an earlier block's
    output already contains it.
    """

    @property
    def cache(self) -> Cache:
        """What the next step may use; read after the step's last block."""

    def __call__(self, block: Block, h: Tensor, *cond: Tensor) -> Tensor | None:
        """Return the block's output for the stream `h`."""


class Compute:
    """Compute every block, keep nothing."""

    cache = EMPTY

    def __call__(self, block: Block, h: Tensor, *cond: Tensor) -> Tensor:
        """Return `block.fn(h, *cond)`."""
        return block.fn(h, *cond)


compute = Compute()


def through(run: Runner, block: Block, h: Tensor, *cond: Tensor) -> Tensor:
    """Pass the stream `h` through one block: add its output, or replace the stream by it."""
    out = run(block, h, *cond)
    if out is None:
        return h
    return h + out if block.additive else out
