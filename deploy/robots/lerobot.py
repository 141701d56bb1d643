"""Any robot of lerobot's as the robot of a control loop.

    observation.state         the robot's numbers, in the order of its `observation_features`
    observation.images.<cam>  its pictures, HWC uint8
    action                    its `action_features`, in their order

These are the keys that lerobot records datasets with, so a policy trained on them fits.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vivace.policies.errors import BadSetting
from vivace.policies.plugins import register_plugins
from vivace.policies.spec import IMAGES, STATE, Observation


class LerobotRobot:
    """Adapts `get_observation` and `send_action`; their errors are for `PatientRobot`.

    Args:
        robot: connected, of lerobot's interface.
        instruction: for policies that read one.
        now: time of observations [s].
        is_shareable: actions may be sent by one thread while another observes; not so over one serial bus.
    """

    def __init__(
        self,
        robot: Any,
        instruction: str = "",
        now: Callable[[], float] = time.monotonic,
        *,
        is_shareable: bool = False,
    ) -> None:
        self.is_shareable = is_shareable
        self.robot, self._instruction, self._now = robot, instruction, now
        features: Mapping[str, Any] = robot.observation_features
        self._numbers = [name for name, kind in features.items() if kind is float]
        self._cameras = [name for name, kind in features.items() if isinstance(kind, tuple)]
        self.action_names = tuple(robot.action_features)
        self._count = 0

    @property
    def initial_action(self) -> tuple[float, ...] | None:
        """The present posture, if what is commanded is also observed; else nobody knows."""
        values = self.robot.get_observation()
        if not set(self.action_names) <= set(values):
            return None
        return tuple(float(values[name]) for name in self.action_names)

    def observe(self) -> Observation:
        """Read the robot."""
        raw = self.robot.get_observation()
        values = {f"{IMAGES}{name}": np.asarray(raw[name]) for name in self._cameras}
        if self._numbers:
            values[STATE] = np.array([raw[name] for name in self._numbers], np.float32)
        self._count += 1
        return Observation(values, self._count - 1, self._now(), self._instruction)

    def act(self, action: np.ndarray) -> None:
        """Command the robot."""
        self.robot.send_action(dict(zip(self.action_names, action.tolist(), strict=True)))

    def close(self) -> None:
        """Disconnect."""
        if self.robot.is_connected:
            self.robot.disconnect()


def lerobot(robot: str, instruction: str = "", is_shareable: bool = False, **config: Any) -> LerobotRobot:
    """Make and connect one of lerobot's robots, or of a plug-in's.

    Args:
        robot: lerobot's type, e.g. "so101_follower".
        instruction: for policies that read one.
        is_shareable: it can act while it observes, as one over a network may (`robots`).
        config: fields of the robot's config, e.g. port and cameras.

    Raises:
        BadSetting: lerobot is missing, has no such robot, or the config does not fit.
    """
    try:
        import draccus
        from lerobot.robots import RobotConfig, make_robot_from_config

        register_plugins()
    except ImportError as error:
        raise BadSetting(
            f"a lerobot robot needs lerobot ({error}); pip install 'vivace[torch]' and the robot's extra"
        ) from error
    _register_own()
    known = sorted(RobotConfig.get_known_choices())
    if robot not in known:
        raise BadSetting(f"lerobot has no robot {robot!r}; it has {', '.join(known)}")
    try:
        made = make_robot_from_config(draccus.decode(RobotConfig, {"type": robot, **config}))
    except (draccus.utils.DraccusException, ImportError, ValueError, TypeError) as error:
        raise BadSetting(
            f"lerobot's robot {robot!r} cannot be made ({' '.join(str(error).split())})"
        ) from error
    try:
        made.connect()
    except Exception as error:  # lerobot's robots raise all kinds, an OSError or a RuntimeError most often
        raise BadSetting(
            f"lerobot's robot {robot!r} does not connect ({error}); check port and power"
        ) from error
    return LerobotRobot(made, instruction, is_shareable=is_shareable)


def _register_own() -> None:
    """Import lerobot's robots, which registers them; those whose vendor's package is missing stay out."""
    import importlib
    import pkgutil

    import lerobot.robots

    for module in pkgutil.iter_modules(lerobot.robots.__path__):
        if module.ispkg:
            try:
                importlib.import_module(f"lerobot.robots.{module.name}")
            except ImportError:
                continue
