"""The process of the policy node: from the command line to the standstill before it ends.

There is one way out, whatever happens: the standstill is commanded by kind of action, then everything is
closed. Signals are noted only, so a second one cannot break into that.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vivace.deploy.ros2.lifecycle import PolicyNode
from vivace.deploy.system.interrupts import Interrupts
from vivace.deploy.telemetry.output_relay import OutputRelay
from vivace.policies.errors import VivaceError

_IGNORED = ("SIGTSTP", "SIGTTIN", "SIGTTOU")
"""Of the terminal, which would suspend the process while the robot goes on with its last command."""
_MOST_ERRORS, _WINDOW_S = 20, 10.0
"""Errors of callbacks that are outlived, and in which time [s]."""


def run(arguments: Sequence[str]) -> int:
    """Run the node until a signal ends it; it stops the robot before it ends.

    Returns:
        0; 2 if it could not start, 1 if it ended by itself.
    """
    with Interrupts(_IGNORED) as interrupts, OutputRelay():
        interrupts.hold_back()
        try:
            rclpy.init(args=["vivace-ros", *arguments], signal_handler_options=SignalHandlerOptions.NO)
            node = PolicyNode()
        except (ParameterException, VivaceError, RuntimeError) as error:  # rcl's errors are RuntimeErrors
            say(str(error))
            rclpy.try_shutdown()
            return 2
        try:
            return _spin(node, interrupts)
        finally:
            for step in (node.end, node.destroy_node, rclpy.try_shutdown):
                try:
                    step()
                except Exception as error:  # the rest must end too
                    say(f"{type(error).__name__}: {error}")


def say(line: str) -> None:
    """Write a line to standard error, if somebody takes it."""
    with suppress(OSError):
        os.write(2, f"vivace-ros: {' '.join(line.split())}\n".encode(errors="replace"))


def _spin(node: PolicyNode, interrupts: Interrupts) -> int:
    """Serve callbacks; an error of one, such as rclpy's own at a malformed request, is said and outlived."""
    executor, errors = SingleThreadedExecutor(), deque[float](maxlen=_MOST_ERRORS)
    executor.add_node(node)
    while not interrupts.wants_end and rclpy.ok():
        try:
            executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            break
        except Exception as error:  # the outermost frame of the thread
            say(f"a callback failed: {type(error).__name__}: {error}")
            errors.append(time.monotonic())
            if len(errors) == _MOST_ERRORS and errors[-1] - errors[0] < _WINDOW_S:
                say(f"{_MOST_ERRORS} callbacks failed within {_WINDOW_S:g} s, so the node ends")
                return 1
    return 0 if interrupts.wants_end else 1
