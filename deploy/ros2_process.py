"""The process of the policy node: from the command line to the standstill before it ends."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vivace.deploy.ros2_lifecycle import PolicyNode


def run(arguments: Sequence[str]) -> int:
    """Run the node until SIGINT or SIGTERM; it stops the robot before it ends."""
    is_over = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True

    try:
        rclpy.init(args=["vivace-ros", *arguments], signal_handler_options=SignalHandlerOptions.NO)
        node = PolicyNode()
    except (ParameterException, RuntimeError) as error:  # rcl's errors are RuntimeErrors
        print(f"vivace-ros: {' '.join(str(error).split())}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not is_over and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    finally:
        if rclpy.ok() and node.state_name in ("unconfigured", "inactive", "active"):
            node.trigger_shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
