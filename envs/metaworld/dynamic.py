"""Tasks in which time matters: the world moves on, whatever the robot does.

What moves is a function of the reset seed and the time alone, so that a slow and a fast policy meet the same
world; speeds are in metres a second of the physics. Their own control rate is 20 Hz.
"""

import math
from typing import Any, ClassVar

import mujoco
import numpy as np

from vivace.envs.metaworld.world import MetaWorld

_GOAL, _OBJECT, _OBJECT_BEFORE = slice(36, 39), slice(4, 7), slice(22, 25)

_PUCK_INERTIA = np.array([0.01, 0.01, 0.00088])
"""Inertia of the knocked puck [kg m2]: Meta-World's would topple and roll away at one knock in thirty."""


class MovingReach(MetaWorld):
    """Reach a goal that travels through the air, and stay with it.

    The goal runs on an ellipse of its own size, place, height and speed. It succeeds when the fingers have
    been within `RADIUS_M` of the goal for `HOLD_S` on end, in which even the slowest goal leaves a hand that
    stands still. In the observation the goal also takes the place of the object, present and one tick
    earlier, so one state tells the goal's velocity.
    """

    base_task: ClassVar[str] = "reach-v3"
    instruction: ClassVar[str] = "Reach the moving goal and follow it"
    own_hz: ClassVar[float] = 20.0
    episode_s: ClassVar[float] = 7.5
    RADIUS_M: ClassVar[float] = 0.05
    HOLD_S: ClassVar[float] = 1.5
    SPEED_M_S: ClassVar[tuple[float, float]] = (0.08, 0.20)
    """Slowest and fastest speed of the goal [m/s]; the hand is commanded 0.8 along an axis at most."""

    def __init__(self, task: str = "reach-moving", **options: Any) -> None:
        """Load the world; `options` as for `MetaWorld`."""
        super().__init__(task, **options)

    def goal(self, time_s: float) -> np.ndarray:
        """Return where the goal of this episode is at a time [s], xyz [m]."""
        angle = self._phase + self._rate * time_s
        offset = self._radii * np.array([np.cos(angle), np.sin(angle), np.sin(self._lift * angle)])
        return self._centre + offset

    def _begin(self, random: np.random.Generator) -> None:
        self._centre = random.uniform([-0.06, 0.66, 0.16], [0.06, 0.74, 0.24])
        self._radii = random.uniform([0.10, 0.08, 0.02], [0.14, 0.11, 0.05])
        self._phase = random.uniform(0.0, 2.0 * np.pi)
        self._lift = random.uniform(0.5, 1.5)
        speed = random.uniform(*self.SPEED_M_S)
        self._rate = random.choice([-1.0, 1.0]) * speed / self._radii[:2].mean()  # [rad/s]
        self._held = 0
        self._place(self.goal(0.0))
        mujoco.mj_kinematics(self._world.model, self._world.data)  # the first image shows the goal there

    def _disturb(self, began_s: float, ends_s: float) -> None:
        self._place(self.goal(ends_s))

    def _place(self, goal: np.ndarray) -> None:
        self._world._target_pos = goal
        self._world.model.site("goal").pos = goal

    def _judge(self, is_success: bool) -> bool:
        gap = np.linalg.norm(self._world.tcp_center - self._world._target_pos)
        self._held = self._held + 1 if gap <= self.RADIUS_M else 0
        return self._held >= self.HOLD_S * self.control_hz

    def _show(self, state: np.ndarray) -> np.ndarray:
        shown = state.copy()
        shown[_OBJECT] = shown[_GOAL] = self._world._target_pos
        shown[_OBJECT_BEFORE] = self.goal(max(0.0, self.time_s - 1 / self.control_hz))
        return shown


class DisturbedPush(MetaWorld):
    """Push a puck to a goal while somebody knocks it aside, again and again.

    A knock gives the puck a horizontal velocity and friction stops it some centimetres further. It succeeds
    when the puck has been within 5 cm of the goal for `HOLD_S` on end.
    """

    base_task: ClassVar[str] = "push-v3"
    instruction: ClassVar[str] = "Push the puck to the goal although it gets knocked aside"
    own_hz: ClassVar[float] = 20.0
    episode_s: ClassVar[float] = 6.0
    HOLD_S: ClassVar[float] = 0.2
    FIRST_S: ClassVar[tuple[float, float]] = (0.2, 0.8)
    """When the first knock comes [s]."""
    PAUSE_S: ClassVar[tuple[float, float]] = (1.6, 2.4)
    """Between one knock and the next [s], to the end of the episode: the time there is to push."""
    SPEED_M_S: ClassVar[tuple[float, float]] = (0.9, 1.3)
    """Weakest and strongest knock [m/s]; the puck slides 4 to 9 cm."""

    def __init__(self, task: str = "push-disturbed", **options: Any) -> None:
        """Load the world; `options` as for `MetaWorld`."""
        super().__init__(task, **options)
        model = self._world.model
        model.body("obj").inertia = _PUCK_INERTIA
        mujoco.mj_setConst(model, self._world.data)

    @property
    def knocks(self) -> tuple[tuple[float, np.ndarray], ...]:
        """(time [s], velocity the puck is given then, xy [m/s]) of this episode, in order."""
        return self._knocks

    def _begin(self, random: np.random.Generator) -> None:
        duration_s = self.max_episode_steps / self.control_hz
        pauses = random.uniform(*self.PAUSE_S, math.ceil(duration_s / self.PAUSE_S[0]))
        times = random.uniform(*self.FIRST_S) + np.cumsum([0.0, *pauses])
        angles = random.uniform(0.0, 2.0 * np.pi, len(times))
        speeds = random.uniform(*self.SPEED_M_S, len(times))
        kicks = speeds[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (knocks, 2)
        self._knocks = tuple(zip(times.tolist(), kicks, strict=True))
        self._held = 0

    def _disturb(self, began_s: float, ends_s: float) -> None:
        for time_s, velocity in self._knocks:
            if began_s <= time_s < ends_s:
                self._world.data.joint("objjoint").qvel[:2] = velocity

    def _judge(self, is_success: bool) -> bool:
        self._held = self._held + 1 if is_success else 0
        return self._held >= self.HOLD_S * self.control_hz
