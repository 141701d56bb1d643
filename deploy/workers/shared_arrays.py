"""Arrays in memory that two processes share, known by name on both sides."""

from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np

from vivace.policies.arrays import Layout

_ALIGNMENT = 64


class SharedArrays:
    """Named arrays in one block of shared memory; hand it to a process when that is started.

    The block has no name in the file system, so it is gone with the processes, however they end.

    Args:
        layout: shapes and dtypes.
        context: of the processes that will share it.
    """

    def __init__(self, layout: Layout, context: SpawnContext) -> None:
        self._layout = dict(layout)
        self._block = context.RawArray("b", max(1, sum(map(_size, self._layout.values()))))

    def views(self) -> dict[str, np.ndarray]:
        """The arrays; what is written to them is seen by both sides."""
        found: dict[str, np.ndarray] = {}
        place = 0
        block: Any = self._block
        for key, (shape, dtype) in self._layout.items():
            found[key] = np.frombuffer(block, dtype, int(np.prod(shape)), place).reshape(shape)
            place += _size((shape, dtype))
        return found


def _size(entry: tuple[tuple[int, ...], str]) -> int:
    shape, dtype = entry
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
