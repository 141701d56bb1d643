"""A MuJoCo world as the robot of a loop in wall-clock time, with a viewer or a film."""

import os
import sys
from collections import deque
from typing import Any

import numpy as np

from vivace.envs.metaworld.replay import Moment, Replay
from vivace.envs.registry import instruction as task_instruction
from vivace.envs.registry import make
from vivace.eval.simulation.env_robot import EnvRobot, camera_options
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Observation, PolicySpec

_FILM_FPS = 25.0
_FILM_S = 40.0
"""The film shows the last so many seconds."""


class SimRobot(EnvRobot):
    """Steps a Meta-World world once per action.

    Args:
        env: of `vivace.envs`.
        control_hz: control rate [Hz].
        instruction: for policies that read one.
        viewer: show the world in a window while it runs.
    """

    action_names = ("x", "y", "z", "gripper")
    is_simulated = True

    def __init__(self, env: Any, control_hz: float, instruction: str, *, viewer: bool = False) -> None:
        super().__init__(env, control_hz)
        self._instruction, self._control_hz = instruction, control_hz
        self.action_kinds = env.action_kinds
        self.initial_action = (0.0,) * len(self.action_names)
        self._replay = Replay(env)
        self._stride = max(1, round(control_hz / _FILM_FPS))
        self._moments: deque[tuple[int, Moment]] = deque(
            maxlen=round(_FILM_S * control_hz / self._stride) or 1
        )
        self._acted = 0
        self._viewer: Any = _open_viewer(*self._replay.scene) if viewer else None

    @property
    def film_fps(self) -> float:
        """Frames a second that play the film as fast as it happened."""
        return self._control_hz / self._stride

    def reset(self, seed: int) -> None:
        """Begin the episode that a seed decides."""
        super().reset(seed)
        self._replay.begin()

    def observe(self) -> Observation:
        """Return the newest observation, with the instruction."""
        seen = super().observe()
        return Observation(seen.values, seen.tick, seen.time_s, self._instruction)

    def act(self, action: np.ndarray) -> None:
        """Advance the world by one control period; one that is over stands still."""
        if self._acted % self._stride == 0 and not self.is_over:
            self._moments.append((self._acted, self._replay.take()))
        super().act(action)
        self._acted += 1
        if self._viewer is not None:
            self._viewer.sync()

    def film(self) -> list[tuple[int, np.ndarray]]:
        """(number of the action that follows, frame) of the last seconds; ends the episode and closes."""
        try:
            return [(number, self._replay.draw(moment)) for number, moment in self._moments]
        finally:
            self.env.close()  # drawing opens it again

    def close(self) -> None:
        """Close window and world."""
        if self._viewer is not None:
            self._viewer.close()
        self.env.close()


def metaworld(
    spec: PolicySpec,
    control_hz: float,
    instruction: str = "",
    task: str = "",
    viewer: bool = False,
    max_steps: int | None = None,
) -> SimRobot:
    """Make a Meta-World world that has the cameras a policy looks through.

    Args:
        spec: of the policy.
        control_hz: control rate [Hz].
        instruction: what the policy is told; the task's own text when empty.
        task: e.g. "reach-v3"; reach-moving when empty.
        viewer: show the world in a window while it runs.
        max_steps: longest episode; the environment's own when None.

    Raises:
        UnknownEnvironment: there is no such task.
        BadSetting: a window was asked for and there is no display.
    """
    task = task or "reach-moving"
    options = {"control_hz": control_hz, "max_episode_steps": max_steps, **camera_options(spec)}
    text = instruction or task_instruction("metaworld", task)
    robot = SimRobot(make("metaworld", task, **options), control_hz, text, viewer=viewer)
    robot.reset(0)
    return robot


def _open_viewer(model: Any, data: Any) -> Any:
    """Open MuJoCo's window beside the loop."""
    has_display = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not has_display:
        raise BadSetting("a viewer needs a display and there is none; leave --viewer out, a film is written")
    from mujoco import viewer

    return viewer.launch_passive(model, data)
