"""The golden chunk: what a bundle's policy did at export with one observation, to be done again at load.

`golden/<plan>.safetensors` holds the observation as a robot gives it, what the chunk before it meant, the
chunk, and the chunk cut short at once. Of a policy that denoises also the chunk that continues the one
before, or of one that writes tokens the first token's logits, which show what an action's bin hides;
where chunks make use of those before, the one that follows. Noise key, instruction and tolerance are in the
manifest. Anybody's safetensors reads the file; here it is read by hand, for a robot has numpy only: names,
shapes and dtypes are known before it is opened, and nothing else is taken.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from vivace.policies.arrays import observation_layout
from vivace.policies.carry import FOLLOWED
from vivace.policies.errors import BadSetting
from vivace.policies.plain_data import Between, Longest, build, parse_json, shown
from vivace.policies.spec import DELAY, PREVIOUS, PolicySpec

FOLDER = "golden"
CHUNK, CUT, CONTINUED, LOGITS = "action", "action.cut", "action.continued", "logits"
AFTER = "action.after"
_PREVIOUS = 4
"""Actions of the chunk before, at most."""
_DTYPES = {"uint8": "U8", "float32": "F32"}
"""Numpy's name -> safetensors'."""
_HEADER = 8
"""Bytes that say how long the header is."""
_MAX_HEADER = 2**16


@dataclass(frozen=True, kw_only=True)
class GoldenSettings:
    """What a chunk was recorded under at export, see `Golden`."""

    file: Annotated[str, Longest(200)]
    noise_key: Annotated[tuple[Annotated[int, Between(0, 2**62)], ...], Longest(8)]
    task: Annotated[str, Longest(10_000)]
    tolerance: Annotated[float, Between(0.0, 0.1)]
    """How far a chunk may be from the recorded one, in units of what 1 is to the policy."""

    @property
    def next_key(self) -> tuple[int, ...]:
        """Of the noise of the chunk that follows."""
        return (*self.noise_key[:-1], self.noise_key[-1] + 1)

    @property
    def follows(self) -> dict[str, np.ndarray]:
        """What that chunk is told: it follows the recorded one, of which one action is past."""
        return {FOLLOWED: np.array([[self.noise_key[-1], 1]])}


@dataclass(frozen=True)
class Golden:
    """One observation and what was made of it."""

    observations: Mapping[str, np.ndarray]
    """Key -> (To, ...), images HWC uint8, in the robot's units."""
    previous: np.ndarray
    """What the chunk before meant (m, A), in the robot's units."""
    chunk: np.ndarray
    """(H - first_action, A), in the robot's units."""
    cut: np.ndarray
    """The same, cut short as soon as it can be."""
    continued: np.ndarray | None = None
    """The same after `previous`; None where chunks continue none."""
    logits: np.ndarray | None = None
    """Of the first token (V,), of a policy that writes tokens."""
    after: np.ndarray | None = None
    """The chunk that follows `chunk`, one action of which is past; None where chunks follow none."""

    @property
    def batch(self) -> dict[str, np.ndarray]:
        """The observation as `predict` takes it: (1, To, ...)."""
        return {key: value[None] for key, value in self.observations.items()}

    @property
    def before(self) -> dict[str, np.ndarray]:
        """What its continuation is told of the chunk before."""
        return {PREVIOUS: self.previous[None], DELAY: np.ones(1, np.int64)}

    def to_bytes(self) -> bytes:
        """Return the file."""
        arrays = {**self.observations, PREVIOUS: self.previous, CHUNK: self.chunk, CUT: self.cut}
        last = {CONTINUED: self.continued, LOGITS: self.logits, AFTER: self.after}
        arrays |= {name: array for name, array in last.items() if array is not None}
        header, data = {}, b""
        for name, array in arrays.items():
            start, data = len(data), data + np.ascontiguousarray(array).tobytes()
            dtype = _DTYPES[str(array.dtype)]
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, len(data)]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(_HEADER, "little") + text + data

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        name: str,
        spec: PolicySpec,
        vocabulary: int = 0,
        continues: bool = True,
        carries: bool = False,
    ) -> "Golden":
        """Read the file.

        Args:
            data: its bytes.
            name: what it is called in messages.
            spec: of the policy.
            vocabulary: tokens it chooses from, of a policy that writes tokens.
            continues: chunks can continue others, of a policy that denoises.
            carries: chunks may make use of those before.

        Raises:
            BadSetting: it is damaged, or does not fit the policy.
        """
        size = int.from_bytes(data[:_HEADER], "little")
        if not 0 < size <= min(_MAX_HEADER, len(data) - _HEADER):
            raise BadSetting(f"{name} is truncated or no safetensors file")
        header = parse_json(data[_HEADER : _HEADER + size], name)
        body = data[_HEADER + size :]
        arrays, place = {}, 0
        wanted = _layout(spec, vocabulary, continues, carries)
        if not isinstance(header, dict) or sorted(header) != sorted(wanted):
            raise BadSetting(f"{name} holds {shown(header)}; needed are {', '.join(wanted)}")
        total = sum(_size(shape, dtype) for shape, dtype in wanted.values())
        if len(body) != total:
            raise BadSetting(f"{name} has {len(body)} bytes of numbers; needed are {total}")
        for key, (shape, dtype) in wanted.items():
            entry = build(_Entry, f"{name} {key}", header[key])
            n = _size(shape, dtype)
            found = (entry.dtype, entry.shape, entry.data_offsets)
            if found != (_DTYPES[dtype], shape, (place, place + n)):
                raise BadSetting(
                    f"{name} has {key} as {found[0]} {found[1]} at {found[2]}; needed is "
                    f"{_DTYPES[dtype]} {shape} at {(place, place + n)}"
                )
            arrays[key] = np.frombuffer(body[place : place + n], dtype).reshape(shape)
            place += n
        bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise BadSetting(f"{name} has numbers in {bad[0]} that are not finite")
        seen = {key: arrays[key] for key in spec.observation_shapes}
        last = arrays.get(CONTINUED), arrays.get(LOGITS), arrays.get(AFTER)
        return cls(seen, arrays[PREVIOUS], arrays[CHUNK], arrays[CUT], *last)


@dataclass(frozen=True)
class _Entry:
    """Of an array in the header."""

    dtype: Annotated[str, Longest(8)]
    shape: Annotated[tuple[int, ...], Longest(8)]
    data_offsets: tuple[int, int]


def _size(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def golden_file(plan: str) -> str:
    """Path inside a bundle of a plan's golden chunk."""
    return f"{FOLDER}/{plan}.safetensors"


def n_previous(spec: PolicySpec) -> int:
    """Actions of the chunk before that are recorded."""
    return min(_PREVIOUS, spec.horizon - spec.first_action)


def _layout(
    spec: PolicySpec, vocabulary: int, continues: bool, carries: bool
) -> dict[str, tuple[tuple[int, ...], str]]:
    chunk = ((spec.horizon - spec.first_action, spec.action_dim), "float32")
    before = ((n_previous(spec), spec.action_dim), "float32")
    last = (
        {LOGITS: ((vocabulary,), "float32")}
        if vocabulary
        else {CONTINUED: chunk}
        if continues and not spec.is_cut
        else {}
    )
    after = {AFTER: chunk} if carries else {}
    return {**observation_layout(spec), PREVIOUS: before, CHUNK: chunk, CUT: chunk, **last, **after}
