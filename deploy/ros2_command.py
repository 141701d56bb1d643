"""Actions as commands: one array a tick, or a chunk as a trajectory aligned in time; needs no ROS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vivace.policies.types import ActionKind

_SAME = 1e-6
"""Actions that differ by less are the same."""


@dataclass(frozen=True)
class Intent:
    """What the loop does at one tick and means to do after it."""

    action: np.ndarray
    """Action of this tick (A,), after the guard."""
    ahead: np.ndarray
    """Actions of the ticks after it, as the guard would let them pass (m, A); m may be 0."""
    chunk_id: int | None
    """Count of the chunk they are from; None: the fallback or a hold."""
    stamp_s: float
    """Stamp of the observation they were computed from; now without a chunk [s]."""
    age_ticks: int
    """Ticks since that observation."""


@dataclass(frozen=True)
class Trajectory:
    """A `trajectory_msgs/JointTrajectory` in plain values."""

    stamp_s: float
    """What the times count from: the observation's stamp [s]."""
    names: tuple[str, ...]
    positions: np.ndarray | None
    """(m, A), None if velocities are commanded."""
    velocities: np.ndarray | None
    """(m, A), None if positions are commanded."""
    times_s: tuple[float, ...]
    """When each point is to be reached, ascending [s after `stamp_s`]."""


class Command(Protocol):
    """Where actions go."""

    def __call__(self, intent: Intent) -> None:
        """Send what is to be done now, if it is news."""


class ArrayCommand:
    """Sends every action by itself.

    Args:
        send: takes one action (A,).
    """

    def __init__(self, send: Callable[[np.ndarray], None]) -> None:
        self._send = send

    def __call__(self, intent: Intent) -> None:
        """Send the action of this tick."""
        self._send(intent.action)


class TrajectoryCommand:
    """Sends chunks as trajectories; a trajectory is sent when it says something new.

    Action i of a chunk is to be reached at the end of its control period,

        stamp of the chunk's observation + (ticks since it + i + 1) * period

    so a controller that gets it late skips the points that have passed. Displacements are added up from the
    joint positions measured when the trajectory is sent, so nothing winds up.

    Args:
        names: joint of each action dimension.
        kinds: what each dimension means; velocities do not mix with others.
        period_s: control period [s].
        horizon: most points; 0: all.
        measured: returns the measured positions (A,), NaN where unknown.
        send: takes a trajectory.
    """

    def __init__(
        self,
        names: Sequence[str],
        kinds: Sequence[ActionKind],
        period_s: float,
        horizon: int,
        measured: Callable[[], np.ndarray],
        send: Callable[[Trajectory], None],
    ) -> None:
        self._names, self._period_s, self._horizon = tuple(names), period_s, horizon
        self._is_velocity = ActionKind.VELOCITY in kinds
        self._is_delta = np.array([kind == ActionKind.DELTA for kind in kinds])
        self._measured, self._send = measured, send
        self._sent: Intent | None = None

    def __call__(self, intent: Intent) -> None:
        """Send the action of this tick and those after it, unless what was sent says so already."""
        if self._is_known(intent):
            return
        actions = np.concatenate([intent.action[None], intent.ahead])[: self._horizon or None]
        self._sent = replace(intent, action=actions[0], ahead=actions[1:])
        first = intent.age_ticks + 1
        times = tuple((first + i) * self._period_s for i in range(len(actions)))
        if self._is_velocity:
            self._send(Trajectory(intent.stamp_s, self._names, None, actions, times))
            return
        added = self._measured() + np.cumsum(actions, axis=0)
        positions = np.where(self._is_delta, added, actions)
        self._send(Trajectory(intent.stamp_s, self._names, positions, None, times))

    def _is_known(self, intent: Intent) -> bool:
        """Whether what was sent last covers this tick: a point of the same chunk, or the same hold."""
        sent = self._sent
        if sent is None or sent.chunk_id != intent.chunk_id:
            return False
        if intent.chunk_id is None:
            return bool(np.allclose(sent.action, intent.action, rtol=0, atol=_SAME))
        since = intent.age_ticks - sent.age_ticks
        if not 1 <= since <= len(sent.ahead):
            return False
        return bool(np.allclose(sent.ahead[since - 1], intent.action, rtol=0, atol=_SAME))
