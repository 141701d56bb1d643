"""What one chunk leaves to the next one of its episode, and who holds it meanwhile; free of torch.

A technique may let a chunk begin from what the one before it left (its *carry*). Sampling stays pure: what
was left goes in, what is left comes out. Between the chunks of an episode it waits in a `Slot`, which whoever
runs the episode holds: a worker of a simulated episode, or the session of a robot, which runs one at a time.

The control loop says which chunk the robot executes, and how many of its actions are past (`FOLLOWED`). A
slot gives back what that very chunk left, or nothing: at the beginning of an episode, and after a chunk that
was late, skipped or refused, a chunk is made as after a reset.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

FOLLOWED = "action.followed"
"""Key under which a batch of observations holds (B, 2): the tick of the observation that the chunk was made
from which is being executed, -1: there is none to follow; and how many of its actions are past."""
SLOTS = "action.slots"
"""Key beside it: one `Slot` a row; left out by who runs one episode at a time."""

Carry = Mapping[str, Any]
"""What chunks leave, by name: trees of tensors or arrays, one row each, and plain values; never changed in
place."""
NOTHING: Carry = MappingProxyType({})
"""What is left where no technique carries anything; and what the first chunk of an episode finds."""
LATENT, PAST = "latent", "past"
"""Names of what every chunk leaves: what was denoised (B, *latent_shape); and of what is added when it is
followed: actions of it that are past (B,)."""


SEEN, LOOKED = "seen", "looked"
"""Names of what is left where not every chunk looks: what the last look gave, and how many chunks were made
of it."""
LOOKS, PIXELS, WORDS = "looks", "pixels", "words"
"""And of what was made of each camera's picture, where they are looked at at rates of their own; and of the
pixels of each patch and the tokens as they were read, where patches are read anew once they change."""


class Slot:
    """Holds what the newest chunk of one episode left."""

    def __init__(self) -> None:
        self._maker: object = None
        self._key: tuple[int, ...] = ()
        self._carry = NOTHING

    def put(self, maker: object, key: tuple[int, ...], carry: Carry) -> None:
        """Keep what a chunk left, in the place of what was left before.

        Args:
            maker: what made it; only the same can follow it.
            key: names the chunk: that of its noise.
            carry: what it left.
        """
        self._maker, self._key, self._carry = maker, key, carry

    def get(self, maker: object, key: tuple[int, ...]) -> Carry:
        """Return what the chunk of this key left; nothing if the newest one is another, or another's."""
        return self._carry if self._maker is maker and self._key == key else NOTHING

    def clear(self) -> None:
        """Forget it: the newest chunk failed."""
        self.put(None, (), NOTHING)


def slots_of(observations: Mapping[str, Any], own: Slot, rows: int) -> Sequence[Slot]:
    """Slots of a batch's rows: those it brings, the session's own of a single one, else new ones."""
    found: Sequence[Slot] | None = observations.get(SLOTS)
    if found is not None:
        return found
    return [own] if rows == 1 else [Slot() for _ in range(rows)]


def followed(
    observations: Mapping[str, Any], noise_keys: Sequence[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], int]]:
    """Key of the chunk that each row follows, and how many of its actions are past; key () where none."""
    said = np.asarray(observations.get(FOLLOWED, np.full((len(noise_keys), 2), -1)))
    return [
        ((*key[:-1], int(tick)) if tick >= 0 else (), int(past))
        for key, (tick, past) in zip(noise_keys, said, strict=True)
    ]
