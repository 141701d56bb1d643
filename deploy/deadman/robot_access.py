"""Makes a robot: in the loop's process, or in one of its own with a dead man's switch."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from vivace.deploy.deadman.deadman import DeadmanSettings
from vivace.deploy.deadman.robot_process import RobotProcess
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.robot import Robot
from vivace.deploy.robots.registry import is_simulated, make_robot
from vivace.deploy.system.realtime import RealtimeSettings
from vivace.policies.spec import ActionKind


def open_robot(
    kind: str,
    options: Mapping[str, Any],
    context: Mapping[str, Any],
    settings: DeadmanSettings,
    realtime: RealtimeSettings | None = None,
) -> Robot:
    """Make a robot as `make_robot` does, in a process of its own if the settings want a dead man's switch.

    Args:
        kind: of `make_robot`.
        options: of `make_robot`.
        context: of `make_robot`; "spec" and "control_hz" are needed.
        settings: of the switch.
        realtime: what the loop asks of the operating system; the process asks for a little more.

    Raises:
        BadSetting: as `make_robot`; or the process did not come up.
    """
    make = partial(make_robot, kind, dict(options), dict(context))
    if not is_wanted(settings, kind):
        return make()
    robot = RobotProcess(
        make, context["spec"], 1.0 / context["control_hz"], settings, name=kind, realtime=realtime
    )
    robot.start()
    return robot


def is_wanted(settings: DeadmanSettings, kind: str) -> bool:
    """Whether a robot gets a dead man's switch; one that stands still when nobody steps it needs none."""
    return not is_simulated(kind) if settings.enabled is None else settings.enabled


def arm(robot: Robot, kinds: Sequence[ActionKind], limits: Limits) -> str:
    """Tell a robot's switch, if it has one, what actions mean and which limits a standstill keeps.

    Returns:
        What the switch cannot do for this robot; empty if nothing.
    """
    if not isinstance(robot, RobotProcess):
        return ""
    robot.arm(kinds, limits)
    return robot.warning
