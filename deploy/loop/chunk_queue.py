"""Actions waiting to be executed, aligned with the tick they were meant for."""

from dataclasses import dataclass

import numpy as np

from vivace.policies.errors import BadSetting
from vivace.policies.spec import Chunk


@dataclass(frozen=True, slots=True)
class Queued:
    """One action and where it comes from."""

    action: np.ndarray
    """(A,)."""
    chunk_id: int
    """Count of the chunk, from 0."""
    index: int
    """Position in the chunk."""
    age_ticks: int
    """Ticks since the observation it was computed from."""


class ChunkQueue:
    """One chunk at a time; a newer one replaces it at the tick it arrives.

    Ticks ascend, so no action is executed twice or after a later one: (chunk_id, index) of what `pop`
    returns ascends strictly.

    A chunk is a way through space, and a robot that stands goes no part of it. So ticks in which it stood
    (`stand`) between a chunk's observation and its first action do not count, in either mode: a chunk that
    was computed from a standstill and finds the robot there still begins with its first action, and one that
    was asked for before the last one ran dry goes on where that ended. A chunk that has begun and is
    interrupted by a standstill is forgotten: what it was computed from is past.

    Args:
        drop_late: execute action i at tick `chunk.tick + i`, standstills left out, and drop it if that has
            passed (async); else execute from the first action on when the chunk arrives, one action a tick
            (sync).
        limit: how many actions of a chunk may be executed, all when None.
        blend_ticks: ticks over which a newer chunk is blended linearly with what the older one meant for the
            same ticks; 0 switches at once. Only with `drop_late`.
        ensemble: temporal ensembling (ACT, arXiv 2304.13705, algorithm 2): what is executed is the mean of
            what all chunks so far mean for it, weighed by exp(-ensemble * i), the oldest chunk's i being 0;
            the newest chunk's alone when None.
    """

    def __init__(
        self,
        *,
        drop_late: bool,
        limit: int | None = None,
        blend_ticks: int = 0,
        ensemble: float | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise BadSetting(f"limit={limit}; at least 1 action of a chunk must be executed")
        if blend_ticks < 0 or (blend_ticks and not drop_late):
            raise BadSetting(
                f"blend_ticks={blend_ticks} with drop_late={drop_late}; needed: 0 or more, and 0 unless late "
                "actions are dropped (mode async)"
            )
        if blend_ticks and ensemble is not None:
            raise BadSetting(
                f"blend_ticks={blend_ticks}, but this policy executes the mean of its chunks (temporal "
                "ensembling), which leaves no seam to blend; give blend_ticks=0"
            )
        self.drop_late, self._limit, self._blend_ticks = drop_late, limit, blend_ticks
        self._ensemble = ensemble
        self._votes: list[tuple[Chunk, int]] = []
        """Chunks that have begun, oldest first, and how many actions were popped before their first one."""
        self._n_popped = 0
        self._chunk: Chunk | None = None
        self._previous: Chunk | None = None
        self._is_followed = False
        """Whether the chunk was in time, and nothing of it was refused."""
        self._start = self._previous_start = 0
        """Tick of action 0; of a chunk that has not begun, before what the robot stands is added."""
        self._has_begun = False
        self._stands_since: int | None = None
        self._stood: list[tuple[int, int]] = []
        """Standstills that are over and may matter still: first tick, tick after the last one."""
        self._switched = 0
        self._popped = -1
        self._oldest = 0
        self.accepted = 0
        """Chunks taken so far."""
        self.dropped = 0
        """Actions dropped so far because they arrived late."""

    @property
    def observed_tick(self) -> int | None:
        """Tick of the observation behind the current chunk, None before the first chunk."""
        return None if self._chunk is None else self._chunk.tick

    def push(self, chunk: Chunk, tick: int, *, was_late: bool = False) -> bool:
        """Switch to a chunk that is there at `tick`.

        Args:
            chunk: the chunk.
            tick: now.
            was_late: it missed its deadline. No chunk follows it then, unless the robot stood meanwhile, so
                that it still begins with its first action.

        Returns:
            False if the current chunk is as new, or what it was computed from was cleared: it is ignored.

        Raises:
            BadSetting: the chunk's observation lies in the future.
        """
        if chunk.tick > tick:
            raise BadSetting(
                f"a chunk observed at tick {chunk.tick} arrived at tick {tick}; number both by the same clock"
            )
        if chunk.tick < self._oldest or (self._chunk is not None and chunk.tick <= self._chunk.tick):
            return False
        self._previous = self._chunk if self._blend_ticks else None
        self._previous_start = self._first(tick)
        self._chunk, self._switched, self._has_begun = chunk, tick, False
        self._start = chunk.tick if self.drop_late else tick
        self._stood = [stand for stand in self._stood if stand[1] > chunk.tick]
        self.accepted += 1
        late = tick - self._first(tick)
        self.dropped += min(late, len(chunk.actions))
        self._is_followed = not (was_late and late)
        return True

    def stand(self, tick: int) -> None:
        """Note that the robot stood at `tick`: nothing was popped, and what was commanded moved nothing.

        It stands until an action is popped.
        """
        if self._stands_since is None:
            self._stands_since = tick
        if self._chunk is not None and self._has_begun and self.remaining(tick):
            self.clear(self._chunk.tick + 1)

    def _first(self, tick: int) -> int:
        """Tick of action 0, if the chunk goes on or begins at `tick`."""
        if self._has_begun:
            return self._start
        stood = self._stood if self._stands_since is None else [*self._stood, (self._stands_since, tick)]
        since = self._start
        return since + sum(max(0, min(end, tick) - max(begin, since)) for begin, end in stood)

    def clear(self, tick: int) -> None:
        """Forget all that was computed from observations before `tick`, also what is still to come."""
        self._oldest = tick
        if self._chunk is not None and self._chunk.tick < tick:
            self._chunk = self._previous = None
            self._votes.clear()

    def remaining(self, tick: int) -> int:
        """Actions that may be executed at `tick` and later."""
        if self._chunk is None:
            return 0
        usable = len(self._chunk.actions)
        if self._limit is not None:
            usable = min(self._limit, usable)
        return max(0, usable - (tick - self._first(tick)))

    def ahead(self, tick: int) -> np.ndarray | None:
        """What the current chunk means for `tick` and later (m, A), executed or not; None if nothing."""
        if self._chunk is None:
            return None
        actions = self._chunk.actions[tick - self._first(tick) :]
        return actions if len(actions) else None

    def refuse(self) -> None:
        """Note that an action of the current chunk was refused; no chunk follows it."""
        self._is_followed = False

    def followed(self, tick: int) -> tuple[int, int] | None:
        """What a chunk asked for at `tick` follows; None if the current one was late, refused, or is used up.

        Returns:
            The tick at which the current chunk was observed, and how many of its actions are past.
        """
        if self._chunk is None or not self._is_followed or self.ahead(tick) is None:
            return None
        return self._chunk.tick, tick - self._first(tick)

    def pop(self, tick: int) -> Queued | None:
        """Return the action for `tick`, None if there is none.

        Raises:
            BadSetting: `tick` does not come after the tick asked for before.
        """
        if tick <= self._popped:
            raise BadSetting(
                f"the action of tick {tick} was asked for after that of {self._popped}; ticks must ascend"
            )
        self._popped = tick
        chunk = self._chunk
        if chunk is None or self.remaining(tick) == 0:
            return None
        self._start, self._has_begun = self._first(tick), True
        if self._stands_since is not None:
            self._stood.append((self._stands_since, tick))
            self._stands_since = None
        index = tick - self._start
        action = self._blended(chunk.actions[index], tick)
        if self._ensemble is not None:
            action = self._voted(chunk, index, self._ensemble)
        self._n_popped += 1
        return Queued(action, self.accepted - 1, index, tick - chunk.tick)

    def _voted(self, chunk: Chunk, index: int, ensemble: float) -> np.ndarray:
        """Mean (A,) of what all chunks mean for the action that is popped now."""
        if not self._votes or self._votes[-1][0] is not chunk:
            self._votes.append((chunk, self._n_popped - index))
        self._votes = [vote for vote in self._votes if self._n_popped - vote[1] < len(vote[0].actions)]
        means = np.stack([voter.actions[self._n_popped - first] for voter, first in self._votes])
        weights = np.exp(-ensemble * np.arange(len(means)))
        return np.asarray(weights @ means / weights.sum(), dtype=chunk.actions.dtype)

    def _blended(self, action: np.ndarray, tick: int) -> np.ndarray:
        """Mix in what the previous chunk meant for `tick`, less from tick to tick."""
        since = tick - self._switched
        if self._previous is None or since >= self._blend_ticks:
            return action
        index = tick - self._previous_start
        if index >= len(self._previous.actions) or not np.isfinite(self._previous.actions[index]).all():
            return action
        share = (since + 1) / (self._blend_ticks + 1)
        mixed = share * action + (1.0 - share) * self._previous.actions[index]
        return np.asarray(mixed, dtype=action.dtype)
