"""The dead man's switch of the policy node: a process with a publisher of its own on the command topic.

A topic has room for two, so the node goes on to command the robot itself and tells the switch of every tick.
The switch is silent until the node is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vivace.deploy.deadman import DeadmanSettings
from vivace.deploy.robot_process import RobotProcess
from vivace.deploy.ros2_command import ArrayCommand, Command, Intent, TrajectoryCommand
from vivace.deploy.ros2_settings import RosSettings
from vivace.deploy.ros2_topics import trajectory_message
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.types import ActionKind, Observation, PolicySpec

SUFFIX = "_deadman"
"""The switch's node is named as the policy's, with this behind."""


class CommandTopic:
    """A robot that is not told anything: only a standstill is published, over `standstill_connection`.

    Args:
        name: of the node.
        namespace: of the node.
        make_command: returns what sends commands from a node.
    """

    def __init__(self, name: str, namespace: str, make_command: Callable[[Node], Command]) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(name, namespace=namespace, enable_rosout=False)
        self._command = make_command(self._node)

    def standstill_connection(self) -> "StandstillTopic":
        """The way over which the switch commands."""
        return StandstillTopic(self._command)

    def observe(self) -> Observation:
        """Nothing is seen."""
        raise BadSetting("the switch of a ROS node does not observe")

    def act(self, action: np.ndarray) -> None:
        """The node has published the action itself."""

    def reset(self, seed: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Leave the topic."""
        self._node.destroy_node()
        rclpy.try_shutdown()


class StandstillTopic:
    """Publishes what the switch commands."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def act(self, action: np.ndarray) -> None:
        """Publish one action (A,)."""
        none = np.empty((0, len(action)), np.float32)
        self._command(Intent(action, none, None, 0.0, 0))  # stamp 0: begin at once, whatever the clock


class NodeDeadman:
    """The node's side of the switch.

    Args:
        node: the policy node.
        topic: full name of the command topic.
        settings: of the node.
        spec: of the policy, its actions meaning what the settings say.

    Raises:
        VivaceError: the process does not come up, or cannot command a standstill in the node's form.
    """

    def __init__(self, node: Any, topic: str, settings: RosSettings, spec: PolicySpec) -> None:
        self._log = node.get_logger()
        period_s, is_trajectory = 1.0 / settings.control_hz, settings.command_type == "trajectory"
        make_command = partial(
            standstill_command, topic, is_trajectory, settings.command_names, spec.action_kinds, period_s
        )
        self._process = RobotProcess(
            partial(CommandTopic, node.get_name() + SUFFIX, node.get_namespace(), make_command),
            spec,
            period_s,
            DeadmanSettings(floor_s=settings.deadman_s),
            name=topic,
            is_only_way=False,
        )
        self._process.start()
        self._process.arm(spec.action_kinds, settings.limits(spec))

    def watch(self, command: Command) -> Command:
        """Return a command that is sent as before, and told to the switch."""

        def send(intent: Intent) -> None:
            command(intent)
            self._tell(lambda: self._process.act(np.asarray(intent.action, np.float32)))

        return send

    def disarm(self) -> None:
        """Expect no ticks until the next one."""
        self._tell(lambda: self._process.reset(0))

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _tell(self, tell: Callable[[], None]) -> None:
        """A switch that does not answer must not stop the node that it watches."""
        try:
            tell()
        except VivaceError as error:
            self._log.warning(f"the dead man's switch: {error}", throttle_duration_sec=1.0)


def standstill_command(
    topic: str,
    is_trajectory: bool,
    names: Sequence[str],
    kinds: Sequence[ActionKind],
    period_s: float,
    node: Node,
) -> Command:
    """Return what sends commands of the policy node's form from another node.

    Raises:
        BadSetting: displacements as trajectories, which begin at positions that the switch does not know.
    """
    publisher = node.create_publisher(JointTrajectory if is_trajectory else Float64MultiArray, topic, 10)
    if not is_trajectory:
        return ArrayCommand(lambda action: publisher.publish(Float64MultiArray(data=action.tolist())))
    if ActionKind.DELTA in kinds:
        raise BadSetting(
            "deadman_s is set, but displacements are commanded as trajectories, which end by themselves; "
            "leave it at 0, or take command.type=array"
        )
    unknown = np.full(len(kinds), np.nan)
    return TrajectoryCommand(
        names, kinds, period_s, 1, lambda: unknown, lambda t: publisher.publish(trajectory_message(t))
    )
