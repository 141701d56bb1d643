"""An observation in memory that two processes share: arrays of any layout, copied once on each side."""

import math
import pickle
import sys
from multiprocessing.context import SpawnContext

import numpy as np

from vivace.deploy.workers.shared_arrays import SharedArrays
from vivace.policies.errors import ObservationMismatch
from vivace.policies.spec import Observation, PolicySpec

_NUMBER_BYTES = 8
"""Of the largest numbers there are."""
_MARGIN_BYTES = 1 << 16
"""For names, shapes and the instruction."""


_SMALL_BYTES = 1 << 16
"""Memory that the interpreter has at hand anyway."""
_KEPT = 32


class Buffers:
    """Memory that is used again once nobody looks at it: a fresh megabyte costs more than filling it."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = [bytearray()]
        self._unseen = sys.getrefcount(self._kept[0])

    def copy(self, source: np.ndarray) -> bytearray:
        """Return a copy of bytes (n,), which is the holder's for as long as it, or a view of it, is held."""
        buffer = self._free(len(source)) if len(source) > _SMALL_BYTES else bytearray(len(source))
        np.frombuffer(buffer, np.uint8)[...] = source
        return buffer

    def _free(self, length: int) -> bytearray:
        for i in range(len(self._kept)):
            if len(self._kept[i]) == length and sys.getrefcount(self._kept[i]) == self._unseen:
                return self._kept[i]
        self._kept.append(bytearray(length))
        del self._kept[:-_KEPT]
        return self._kept[-1]


class SharedObservation:
    """Room for one observation of a policy; hand it to a process when that is started.

    Only what the policy reads is carried over. The one side writes when it is asked to, and not again before
    the other has read.

    Args:
        spec: of the policy.
        context: of the processes that will share it.
    """

    def __init__(self, spec: PolicySpec, context: SpawnContext) -> None:
        self._shapes = dict(spec.observation_shapes)
        numbers = sum(math.prod(shape) for shape in self._shapes.values())
        self._buffers = Buffers()
        self._shared = SharedArrays({"room": ((numbers * _NUMBER_BYTES + _MARGIN_BYTES,), "uint8")}, context)

    def write(self, seen: object) -> tuple[int, ...]:
        """Put an observation down.

        Returns:
            What `read` needs: lengths of its parts [bytes].

        Raises:
            ObservationMismatch: it is no observation, lacks a key, or an array is larger than the policy's.
        """
        if not isinstance(seen, Observation):
            raise ObservationMismatch(
                f"the robot's observe() returned a {type(seen).__name__}; return a "
                "vivace.policies.Observation"
            )
        missing = [key for key in self._shapes if key not in seen.values]
        if missing:
            raise ObservationMismatch(
                f"observation has keys {sorted(seen.values)}, but the policy needs {missing[0]!r} of shape "
                f"{self._shapes[missing[0]]}; map your names onto lerobot's keys"
            )
        values = {key: np.ascontiguousarray(seen.values[key]) for key in self._shapes}
        buffers: list[pickle.PickleBuffer] = []
        carried = Observation(values, seen.tick, seen.time_s, seen.task)
        head = pickle.dumps(carried, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        room, place = self._shared.views()["room"], 0
        if sum(map(len, parts)) > len(room):
            shapes = {key: value.shape for key, value in values.items()}
            raise ObservationMismatch(
                f"the observation has shapes {shapes}, the policy needs {self._shapes}; resize in the robot"
            )
        for part in parts:
            room[place : place + len(part)] = np.frombuffer(part, np.uint8)
            place += len(part)
        return tuple(map(len, parts))

    def read(self, lengths: tuple[int, ...]) -> Observation:
        """Take the observation that was written last; its arrays are copies."""
        room, place, parts = self._shared.views()["room"], 0, []
        for length in lengths:
            parts.append(self._buffers.copy(room[place : place + length]))
            place += length
        seen: Observation = pickle.loads(parts[0], buffers=parts[1:])
        return seen
