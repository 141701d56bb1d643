"""The dead man's switch of the policy node: a process with a publisher of its own on the command topic.

A topic has room for two, so the node goes on to command the robot itself and tells the switch of every tick.
The switch is silent until the node is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float64MultiArray

from vivace.deploy.deadman.deadman import DeadmanSettings
from vivace.deploy.deadman.robot_process import RobotProcess
from vivace.deploy.ros2.messages.command import Command, Intent
from vivace.deploy.ros2.outputs import SWITCH, Outputs, Sender, message_kind
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.policies.errors import BadSetting, RobotFailed, VivaceError
from vivace.policies.spec import ActionKind, Observation, PolicySpec

_ACKED_S = 1.0
"""How long the last commands may take to arrive [s]."""


class CommandTopic:
    """A robot that is not told anything: only a standstill is published, over `standstill_connection`.

    Args:
        name: of the node.
        namespace: of the node.
        make_command: returns what sends commands from a node, and its publisher.
    """

    def __init__(
        self, name: str, namespace: str, make_command: Callable[[Node], tuple[Command, Any]]
    ) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(name, namespace=namespace, enable_rosout=False)
        self._command, self._publisher = make_command(self._node)

    def standstill_connection(self) -> "StandstillTopic":
        """The way over which the switch commands."""
        return StandstillTopic(self._command, self._publisher)

    def observe(self) -> Observation:
        """Nothing is seen."""
        raise BadSetting("the switch of a ROS node does not observe")

    def act(self, action: np.ndarray) -> None:
        """The node has published the action itself."""

    def reset(self, seed: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Leave the topic, once what was sent has arrived."""
        self._publisher.wait_for_all_acked(Duration(seconds=_ACKED_S))
        self._node.destroy_node()
        rclpy.try_shutdown()


class StandstillTopic:
    """Publishes what the switch commands."""

    def __init__(self, command: Command, publisher: Any) -> None:
        self._command, self._publisher = command, publisher

    def act(self, action: np.ndarray) -> None:
        """Publish one action (A,).

        Raises:
            RobotFailed: nobody listens, or the middleware has not found who does yet.
        """
        if not self._publisher.get_subscription_count():
            raise RobotFailed("nobody listens to the standstill yet")
        none = np.empty((0, len(action)), np.float32)
        self._command(Intent(action, none, None, 0.0, 0))  # stamp 0: begin at once, whatever the clock


class NodeDeadman:
    """The node's side of the switch.

    Args:
        node: the policy node.
        outputs: of the node.
        settings: of the node.
        spec: of the policy, its actions meaning what the settings say.

    Raises:
        VivaceError: the process does not come up, or cannot command a standstill in the node's form.
    """

    def __init__(self, node: Any, outputs: Outputs, settings: RosSettings, spec: PolicySpec) -> None:
        check_switchable(settings, spec.action_kinds)
        self._log = node.get_logger()
        period_s, topic = 1.0 / settings.control_hz, outputs.topic
        make_command = partial(standstill_command, settings, topic, outputs.rest_topic, spec.action_kinds)
        self._process = RobotProcess(
            partial(CommandTopic, node.get_name() + SWITCH, node.get_namespace(), make_command),
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


def check_switchable(settings: RosSettings, kinds: Sequence[ActionKind]) -> None:
    """Raise `BadSetting` if a standstill cannot be commanded without what the policy node measures."""
    if settings.command_type == "trajectory" and ActionKind.DELTA in kinds:
        raise BadSetting(
            "deadman_s is set, but the switch cannot command a trajectory of delta actions, which begins at "
            "the measured joints; leave it at 0, or take command.type=array"
        )


def standstill_command(
    settings: RosSettings, topic: str, rest_topic: str, kinds: Sequence[ActionKind], node: Node
) -> tuple[Command, Any]:
    """Return what sends commands of the policy node's form from another node, and its publisher.

    Args:
        settings: of the policy node.
        topic: full name of its topic.
        rest_topic: of what is no part of a twist or a pose, if anything is.
        kinds: what each dimension of an action means.
        node: whose publisher it is.
    """
    publisher: Any = node.create_publisher(message_kind(settings), topic, 10)
    rest = node.create_publisher(Float64MultiArray, rest_topic, 10) if rest_topic else None
    unknown = np.full(len(kinds), np.nan)  # the measured positions, which only displacements need
    one_point = replace(settings, command_horizon=1)
    return Sender(node, one_point, publisher, rest).command(kinds, lambda: unknown), publisher
