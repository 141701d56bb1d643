"""Random numbers of episodes, for policies with and without torch."""

from collections.abc import Sequence

import numpy as np


class Streams:
    """One stream of standard normal numbers per row, so that a row does not depend on its neighbours.

    The numbers are numpy's, so that a robot without torch draws the same.

    Args:
        keys: for each row, the integers that name its stream, e.g. (episode seed, tick).
    """

    def __init__(self, keys: Sequence[tuple[int, ...]]) -> None:
        self._generators = [np.random.default_rng(np.random.SeedSequence(key)) for key in keys]

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the next numbers of every row, stacked: (B, *shape), float32."""
        return np.stack([g.standard_normal(shape, dtype=np.float32) for g in self._generators])
