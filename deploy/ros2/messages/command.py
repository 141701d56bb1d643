"""Actions as commands: an array, a twist or a pose a tick, or chunks as trajectories; needs no ROS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vivace.deploy.ros2.messages.pose import TWIST_SIZES, others, pose_of, twist_of
from vivace.policies.spec import ActionKind

TWISTS = ("twist", "twist_stamped")
COMMANDS = ("array", "trajectory", *TWISTS, "pose")
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


class TwistCommand:
    """Sends every action as a twist, and what is no part of it as an array.

    A displacement a control period is sent as the velocity that covers it in that period: exact for positions
    and rotation vectors, to first order for roll, pitch and yaw. Unlike a displacement, a velocity goes on if
    nothing follows it; controllers of twists stop after a time of silence, which should be set.

    Args:
        layout: what the dimensions are, of `TWIST_SIZES` and `OTHER`.
        kinds: velocities or displacements (A).
        period_s: control period [s].
        send: takes a twist (6,), linear and angular.
        send_rest: takes the dimensions that are no part of it, if there are any.
    """

    def __init__(
        self,
        layout: Sequence[str],
        kinds: Sequence[ActionKind],
        period_s: float,
        send: Callable[[np.ndarray], None],
        send_rest: Callable[[np.ndarray], None],
    ) -> None:
        self._layout, self._rest = tuple(layout), others(layout, TWIST_SIZES)
        self._scale = np.array([1.0 / period_s if kind == ActionKind.DELTA else 1.0 for kind in kinds])
        self._send, self._send_rest = send, send_rest

    def __call__(self, intent: Intent) -> None:
        """Send the action of this tick."""
        self._send(twist_of(intent.action * self._scale, self._layout))
        if self._rest:
            self._send_rest(intent.action[self._rest])


class PoseCommand:
    """Sends every action as a pose, and what is no part of it as an array.

    Numbers that are no rotation, such as a quaternion of length 0, hold the pose sent last.

    Args:
        layout: what the dimensions are, as in `ros2_pose`.
        fixed: pose (7,) for what the layout leaves out.
        send: takes a pose (7,).
        send_rest: takes the dimensions that are no part of it, if there are any.
    """

    def __init__(
        self,
        layout: Sequence[str],
        fixed: Sequence[float],
        send: Callable[[np.ndarray], None],
        send_rest: Callable[[np.ndarray], None],
    ) -> None:
        self._layout, self._fixed, self._rest = tuple(layout), tuple(fixed), others(layout)
        self._send, self._send_rest = send, send_rest
        self._sent: np.ndarray | None = None

    def __call__(self, intent: Intent) -> None:
        """Send the action of this tick."""
        pose = pose_of(intent.action.astype(np.float64), self._layout, self._fixed)
        self._sent = self._sent if pose is None else pose
        if self._sent is not None:
            self._send(self._sent)
        if self._rest:
            self._send_rest(intent.action[self._rest])


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
