"""The topics of the commands: their publishers, what is sent on them, and who else sends on them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory

from vivace.deploy.ros2.messages.command import (
    TWISTS,
    ArrayCommand,
    Command,
    PoseCommand,
    Trajectory,
    TrajectoryCommand,
    TwistCommand,
)
from vivace.deploy.ros2.messages.pose import OTHER
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.deploy.ros2.topics import pose_message, trajectory_message, twist_message, with_deadline
from vivace.policies.spec import ActionKind, PolicySpec

_KINDS = {
    "array": Float64MultiArray,
    "trajectory": JointTrajectory,
    "twist": Twist,
    "twist_stamped": TwistStamped,
    "pose": PoseStamped,
}
SWITCH = "_deadman"
"""The dead man's switch is a node named as the policy's, with this behind."""


class Sender:
    """Sends commands from a node, in the form that its settings say.

    Args:
        node: whose clock stamps them.
        settings: of the policy node.
        publisher: of the topic of the commands.
        rest: of the dimensions that are no part of a twist or a pose; None: there are none.
    """

    def __init__(self, node: Any, settings: RosSettings, publisher: Any, rest: Any) -> None:
        self._node, self._settings, self._publisher, self._rest = node, settings, publisher, rest

    def command(self, kinds: Sequence[ActionKind], measured: Callable[[], np.ndarray]) -> Command:
        """Return what sends actions.

        Args:
            kinds: what each dimension of an action means.
            measured: returns the measured value of each (A,), NaN where unknown.
        """
        settings, period_s = self._settings, 1.0 / self._settings.control_hz
        if settings.command_type == "array":
            return ArrayCommand(self._send_array)
        if settings.command_type == "trajectory":
            return TrajectoryCommand(
                settings.command_names,
                kinds,
                period_s,
                settings.command_horizon,
                measured,
                self._send_trajectory,
            )
        if settings.command_type == "pose":
            return PoseCommand(
                settings.command_layout, settings.command_fixed, self._send_pose, self._send_rest
            )
        return TwistCommand(settings.command_layout, kinds, period_s, self._send_twist, self._send_rest)

    def _header(self) -> Header:
        return Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._settings.command_frame)

    def _send_array(self, action: np.ndarray) -> None:
        self._publisher.publish(Float64MultiArray(data=action.tolist()))

    def _send_rest(self, numbers: np.ndarray) -> None:
        self._rest.publish(Float64MultiArray(data=numbers.tolist()))

    def _send_trajectory(self, trajectory: Trajectory) -> None:
        self._publisher.publish(trajectory_message(trajectory))

    def _send_twist(self, twist: np.ndarray) -> None:
        message = twist_message(twist)
        if self._settings.command_type == "twist_stamped":
            message = TwistStamped(header=self._header(), twist=message)
        self._publisher.publish(message)

    def _send_pose(self, pose: np.ndarray) -> None:
        self._publisher.publish(PoseStamped(header=self._header(), pose=pose_message(pose)))


def message_kind(settings: RosSettings) -> type:
    """Type of the messages that commands are."""
    found: type = _KINDS[settings.command_type]
    return found


def has_rest(settings: RosSettings) -> bool:
    """Whether some dimensions are no part of the twist or the pose."""
    return settings.command_type in (*TWISTS, "pose") and OTHER in settings.command_layout


class Outputs:
    """The publishers of a configured node; silent until the node is active.

    Args:
        node: whose they are.
        settings: of the node.
        spec: of the policy.
        on_late: told the middleware's event when a command came later than the QoS deadline offered.
    """

    def __init__(
        self, node: LifecycleNode, settings: RosSettings, spec: PolicySpec, on_late: Callable[[Any], None]
    ) -> None:
        self._node, self._settings, self._spec = node, settings, spec
        self._publisher: Any = node.create_lifecycle_publisher(
            message_kind(settings),
            settings.command_topic,
            with_deadline(QoSProfile(depth=10), settings.deadline_command_s),
            event_callbacks=PublisherEventCallbacks(deadline=on_late),
        )
        self._rest: Any = None
        if has_rest(settings):
            self._rest = node.create_lifecycle_publisher(Float64MultiArray, settings.command_rest_topic, 10)

    def command(self, measured: Callable[[], np.ndarray]) -> Command:
        """Return what sends actions; the argument as of `Sender.command`."""
        sender = Sender(self._node, self._settings, self._publisher, self._rest)
        return sender.command(self._spec.action_kinds, measured)

    @property
    def topic(self) -> str:
        """Full name of the topic of the commands."""
        return str(self._publisher.topic_name)

    @property
    def rest_topic(self) -> str:
        """Full name of the topic of what is no part of a twist or a pose; "" if nothing is."""
        return "" if self._rest is None else str(self._rest.topic_name)

    def rivals(self) -> list[str]:
        """Names of other nodes that publish where commands go, with the topic; one of our name too.

        Our own dead man's switch is none.
        """
        found = []
        ours = (self._node.get_namespace(), self._node.get_name())
        switch = (ours[0], ours[1] + SWITCH)
        for publisher in filter(None, (self._publisher, self._rest)):
            topic, n_ours = publisher.topic_name, 0
            for info in self._node.get_publishers_info_by_topic(topic):
                node = (info.node_namespace, info.node_name)
                n_ours += node == ours
                if node not in (ours, switch) or n_ours > 1:
                    full = f"{info.node_namespace.rstrip('/')}/{info.node_name}"
                    found.append(f"{'another ' if node == ours else ''}{full} publishes on {topic} too")
        return sorted(set(found))

    def wait(self, seconds: float) -> None:
        """Wait until what was sent has arrived, but not longer."""
        for publisher in filter(None, (self._publisher, self._rest)):
            publisher.wait_for_all_acked(Duration(seconds=seconds))

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in filter(None, (self._publisher, self._rest)):
            self._node.destroy_lifecycle_publisher(publisher)
        self._publisher = self._rest = None
