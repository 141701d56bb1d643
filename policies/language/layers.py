"""Layers of a language model as blocks, whatever is in them."""

import copy
from collections.abc import Callable
from typing import Self

from vivace.policies.block import Block


class Layers:
    """What every staged language model is: layers of three blocks, kv, attn and mlp, of which some run."""

    layers: tuple[int, ...]
    """Indices of its layers that run, ascending."""
    _layers: tuple[tuple[Block, Block, Block], ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block, in the order they run."""
        return tuple(block for layer in self._layers for block in layer)

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared."""
        twin = copy.copy(self)
        twin._layers = tuple((fn(kv), fn(attn), fn(mlp)) for kv, attn, mlp in self._layers)
        return twin

    def with_layers(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs these layers only, ascending indices of those that run here."""
        twin = copy.copy(self)
        twin.layers = tuple(self.layers[i] for i in kept)
        twin._layers = tuple(self._layers[i] for i in kept)
        return twin
