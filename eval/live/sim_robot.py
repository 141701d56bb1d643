"""A simulated world as the robot of a loop in wall-clock time, with a viewer or a film."""

import os
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np

from vivace.envs.protocol import NoOptions
from vivace.envs.registry import DEFAULT_TYPE, describe, make, world_type
from vivace.eval.simulation.env_robot import EnvRobot, check_ends
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Observation, PolicySpec

_FILM_FPS = 25.0
_FILM_S = 40.0
"""The film shows the last so many seconds."""


class SimRobot(EnvRobot):
    """Steps a world once per action.

    Args:
        env: of `vivace.envs`.
        control_hz: control rate [Hz].
        instruction: for policies that read one.
        spec: of the policy, its actions understood as the world's.
        max_steps: longest episode; the world's own when None.
        viewer: show the world in a window while it runs.
    """

    is_simulated = True

    def __init__(
        self,
        env: Any,
        control_hz: float,
        instruction: str,
        spec: PolicySpec,
        *,
        max_steps: int | None = None,
        viewer: bool = False,
    ) -> None:
        super().__init__(env, control_hz)
        check_ends(env, max_steps)
        self._max_steps = max_steps
        self._instruction, self._control_hz = instruction, control_hz
        self.action_names = getattr(env, "action_names", None)
        self.action_kinds = spec.action_kinds
        self._zeros = (0.0,) * spec.action_dim
        self._stride = max(1, round(control_hz / _FILM_FPS))
        self._episodes: list[tuple[int, int, list[np.ndarray]]] = []
        """(number of its first action, seed, actions) of the episodes that reach into the film."""
        self._acted = 0
        self._viewer: Any = _open_viewer(env) if viewer else None

    @property
    def film_fps(self) -> float:
        """Frames a second that play the film as fast as it happened."""
        return self._control_hz / self._stride

    @property
    def initial_action(self) -> tuple[float, ...] | None:
        """What is held before the first action (A,): zeros in a world that never says it."""
        return super().initial_action if hasattr(self.env, "initial_action") else self._zeros

    def reset(self, seed: int) -> None:
        """Begin the episode that a seed decides."""
        super().reset(seed)
        first = self._filmed_from
        self._episodes = [one for one in self._episodes if one[0] + len(one[2]) > first]
        self._episodes.append((self._acted, seed, []))

    def observe(self) -> Observation:
        """Return the newest observation, with the instruction."""
        seen = super().observe()
        return Observation(seen.values, seen.tick, seen.time_s, self._instruction)

    def act(self, action: np.ndarray) -> None:
        """Advance the world by one control period; one that is over stands still."""
        if not self.is_over:
            self._episodes[-1][2].append(action.copy())
        super().act(action)
        self._acted += 1
        self.is_over = self.is_over or len(self._episodes[-1][2]) == self._max_steps
        if self._viewer is not None:
            self._viewer.sync()

    def film(self) -> list[tuple[int, np.ndarray]]:
        """(number of the action that follows, frame) of the last seconds; ends the episode and closes.

        Drawing takes longer than a tick, so it is done now: the episodes run once more, and an episode is
        what its seed and its actions make of it.
        """
        frames: list[tuple[int, np.ndarray]] = []
        try:
            for first, seed, actions in self._episodes if hasattr(self.env, "render") else ():
                self.env.reset(seed=seed)
                for number, action in enumerate(actions, first):
                    if number % self._stride == 0 and number >= self._filmed_from:
                        frames.append((number, self.env.render()))
                    self.env.step(action)
        finally:
            self.env.close()
        return frames

    def close(self) -> None:
        """Close window and world."""
        if self._viewer is not None:
            self._viewer.close()
        self.env.close()

    @property
    def _filmed_from(self) -> int:
        """Number of the first action that is in the film."""
        return self._acted - round(_FILM_S * self._control_hz)


def simulation(
    spec: PolicySpec,
    control_hz: float,
    instruction: str = "",
    task: str = "",
    viewer: bool = False,
    max_steps: int | None = None,
    world: str = DEFAULT_TYPE,
    **options: Any,
) -> SimRobot:
    """Make a world, for the policy that will act in it, the robot of a loop.

    Args:
        spec: of the policy.
        control_hz: control rate [Hz].
        instruction: what the policy is told; the task's own text when empty.
        task: of the type of world; its first one when empty.
        viewer: show the world in a window while it runs.
        max_steps: longest episode; the world's own when None.
        world: type of world, `--env.type` of the other verbs.
        options: of the type of world.

    Raises:
        UnknownEnvironment: there is no such type or task.
        BadSetting: it cannot be made so, or a window was asked for and there is none.
    """
    takes = [field.name for field in fields(getattr(world_type(world), "Options", NoOptions))]
    if unknown := [name for name in options if name not in takes]:
        raise BadSetting(
            f"robot {world!r} got an unexpected keyword argument {unknown[0]!r}; it takes "
            f"{', '.join(('viewer', 'max_steps', *takes))}"
        )
    known = describe(world, task, **options)
    fits = len(known.action_kinds) == spec.action_dim
    spec = replace(spec, action_kinds=known.action_kinds) if fits else spec
    length = {} if max_steps is None else {"max_steps": max_steps}
    env = make(world, task, control_hz=control_hz, spec=spec, **length, **options)
    robot = SimRobot(
        env, control_hz, instruction or known.instruction, spec, max_steps=max_steps, viewer=viewer
    )
    robot.reset(0)
    return robot


def _open_viewer(env: Any) -> Any:
    """Open MuJoCo's window beside the loop."""
    has_display = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not has_display:
        raise BadSetting("a viewer needs a display and there is none; leave --viewer out, a film is written")
    if not hasattr(env, "scene"):
        raise BadSetting("this world has no scene of MuJoCo's to show; leave --viewer out, a film is written")
    from mujoco import viewer

    return viewer.launch_passive(*env.scene)
