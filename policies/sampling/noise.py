"""Where a sampler's random numbers come from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from vivace.policies.placement import Placement
from vivace.policies.sampling.streams import Streams


class Noise(Protocol):
    """A stream of standard normal draws; the first is the starting point, one more follows per noisy step."""

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the next draw of the given shape, with the dtype and device of `like`."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let whatever draws from torch's generators meanwhile draw as a seed says; leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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
        return self.ahead(1, shape, like)[0]

    def ahead(self, n: int, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, ...]:
        """Return the next n draws, moved to the device together; bit for bit those of n calls."""
        drawn = torch.from_numpy(self._streams((n, *shape[1:]))).transpose(0, 1).contiguous()
        return Placement(like.device, like.dtype).move(drawn).to(like.dtype).unbind()


class ChunkNoise:
    """The noise of one chunk: so many draws of one shape, made before the first step.

    Only streams of the host are drawn from ahead; others draw on the device as they are asked.

    Args:
        noise: where random numbers come from.
        n: draws that the chunk takes.
        shape: of each.
        like: has the dtype and the device that is wanted.
    """

    def __init__(self, noise: Noise, n: int, shape: tuple[int, ...], like: Tensor) -> None:
        self._noise = noise
        self._drawn = list(noise.ahead(n, shape, like)) if isinstance(noise, EpisodeNoise) else []

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the next draw."""
        return self._drawn.pop(0) if self._drawn else self._noise(shape, like)
