"""Where a sampler's random numbers come from."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vivace.policies.sampling.streams import Streams


class Noise(Protocol):
    """A stream of standard normal draws; the first is the starting point, one more follows per noisy step."""

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the next draw of the given shape, with the dtype and device of `like`."""


class GlobalNoise:
    """Draws from one generator (default: torch's global one), in the order lerobot's own loops draw."""

    def __init__(self, generator: torch.Generator | None = None):
        self._generator = generator

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the next draw."""
        return torch.randn(shape, generator=self._generator, dtype=like.dtype, device=like.device)


class EpisodeNoise:
    """One stream per row of the batch, so that an episode's noise does not depend on its neighbours.

    Args:
        keys: for each row, the integers that name its stream, e.g. (episode seed, tick).
    """

    def __init__(self, keys: Sequence[tuple[int, ...]]):
        self._streams = Streams(keys)

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the next draw of every row, stacked."""
        return torch.from_numpy(self._streams(shape[1:])).to(like)
