"""The process of the policy node: from the command line to the standstill before it ends.

There is one way out, whatever happens: the standstill is commanded by kind of action, then everything is
closed. Signals are noted only, so a second one cannot break into that.
"""

import signal
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vivace.deploy.ros2.lifecycle import PolicyNode
from vivace.deploy.ros2.terminal import Pump, say
from vivace.policies.errors import VivaceError

_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_IGNORED = ("SIGTSTP", "SIGTTIN", "SIGTTOU")
"""Of the terminal, which would freeze the process while the robot goes on with its last command."""
_MOST_ERRORS, _WINDOW_S = 20, 10.0
"""Errors of callbacks that are outlived, and in which time [s]."""


def run(arguments: Sequence[str]) -> int:
    """Run the node until a signal ends it; it stops the robot before it ends.

    Returns:
        0; 2 if it could not start, 1 if it ended by itself.
    """
    signals = _Signals()
    with Pump():
        try:
            rclpy.init(args=["vivace-ros", *arguments], signal_handler_options=SignalHandlerOptions.NO)
            node = PolicyNode()
        except (ParameterException, VivaceError, RuntimeError) as error:  # rcl's errors are RuntimeErrors
            say(str(error))
            rclpy.try_shutdown()
            return 2
        try:
            return _spin(node, signals)
        finally:
            for step in (node.end, node.destroy_node, rclpy.try_shutdown):
                try:
                    step()
                except Exception as error:  # the rest must end too
                    say(f"{type(error).__name__}: {error}")


class _Signals:
    """Notes the signals that are to end the node."""

    def __init__(self) -> None:
        self.is_over = False
        for name in (*_END, *_IGNORED):
            if number := getattr(signal, name, None):  # Windows lacks some
                signal.signal(number, self._note if name in _END else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_over = True


def _spin(node: PolicyNode, signals: _Signals) -> int:
    """Serve callbacks; an error of one, such as rclpy's own at a malformed request, is said and outlived."""
    executor, errors = SingleThreadedExecutor(), deque[float](maxlen=_MOST_ERRORS)
    executor.add_node(node)
    while not signals.is_over and rclpy.ok():
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
    return 0 if signals.is_over else 1
