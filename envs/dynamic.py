"""Tasks in which time matters: the world moves on every tick, whatever the robot does.

What moves is a function of the reset seed and the tick alone, so that a slow and a fast policy meet the
same world.
"""

from typing import Any, ClassVar

import mujoco
import numpy as np

from vivace.envs.metaworld import MetaWorld

_GOAL, _OBJECT, _OBJECT_BEFORE = slice(36, 39), slice(4, 7), slice(22, 25)

_PUCK_INERTIA = np.array([0.01, 0.01, 0.00088])
"""Inertia of the knocked puck [kg m2]: Meta-World's would topple and roll away at one knock in thirty."""


class MovingReach(MetaWorld):
    """Reach a goal that travels through the air, and stay with it.

    The goal runs on an ellipse of its own size, place, height and speed. It succeeds when the fingers have
    been within `RADIUS_M` of the goal for `HOLD_TICKS` steps on end. In the observation the goal also takes
    the place of the object, present and one step earlier, so one state tells the goal's velocity.
    """

    base_task: ClassVar[str] = "reach-v3"
    instruction: ClassVar[str] = "Reach the moving goal and follow it"
    RADIUS_M: ClassVar[float] = 0.05
    HOLD_TICKS: ClassVar[int] = 30
    SPEED_M: ClassVar[tuple[float, float]] = (0.0015, 0.0045)
    """Slowest and fastest speed of the goal [m per step]; the hand moves at most 0.01 along an axis."""

    def __init__(self, task: str = "reach-moving", *, max_episode_steps: int = 150, **options: Any) -> None:
        """Load the world; `options` as for `MetaWorld`."""
        super().__init__(task, max_episode_steps=max_episode_steps, **options)

    def goal(self, tick: int) -> np.ndarray:
        """Return where the goal of this episode is at a tick, xyz [m]."""
        angle = self._phase + self._rate * tick
        offset = self._radii * np.array([np.cos(angle), np.sin(angle), np.sin(self._lift * angle)])
        return self._centre + offset

    def _begin(self, random: np.random.Generator) -> None:
        self._centre = random.uniform([-0.06, 0.66, 0.16], [0.06, 0.74, 0.24])
        self._radii = random.uniform([0.10, 0.08, 0.02], [0.14, 0.11, 0.05])
        self._phase = random.uniform(0.0, 2.0 * np.pi)
        self._lift = random.uniform(0.5, 1.5)
        speed = random.uniform(*self.SPEED_M)
        self._rate = random.choice([-1.0, 1.0]) * speed / self._radii[:2].mean()  # [rad per step]
        self._held = 0
        self._before = self.goal(0)
        self._place(self._before)
        mujoco.mj_kinematics(self._world.model, self._world.data)  # the first image shows the goal there

    def _disturb(self, tick: int) -> None:
        self._before = self.goal(tick)
        self._place(self.goal(tick + 1))

    def _place(self, goal: np.ndarray) -> None:
        self._world._target_pos = goal
        self._world.model.site("goal").pos = goal

    def _judge(self, is_success: bool) -> bool:
        gap = np.linalg.norm(self._world.tcp_center - self._world._target_pos)
        self._held = self._held + 1 if gap <= self.RADIUS_M else 0
        return self._held >= self.HOLD_TICKS

    def _show(self, state: np.ndarray) -> np.ndarray:
        shown = state.copy()
        shown[_OBJECT] = shown[_GOAL] = self._world._target_pos
        shown[_OBJECT_BEFORE] = self._before
        return shown


class DisturbedPush(MetaWorld):
    """Push a puck to a goal while somebody knocks it aside.

    A knock gives the puck a horizontal velocity and friction stops it some centimetres further. It succeeds
    when the puck has been within 5 cm of the goal for `HOLD_TICKS` steps on end.
    """

    base_task: ClassVar[str] = "push-v3"
    instruction: ClassVar[str] = "Push the puck to the goal although it gets knocked aside"
    HOLD_TICKS: ClassVar[int] = 5
    KNOCKS: ClassVar[int] = 2
    START_TICK: ClassVar[tuple[int, int]] = (-10, 10)
    PAUSE_TICKS: ClassVar[tuple[int, int]] = (20, 40)
    """Before each knock, counted from the start tick or the knock before."""
    SPEED_M_S: ClassVar[tuple[float, float]] = (0.9, 1.3)
    """Weakest and strongest knock [m/s]; the puck slides 4 to 9 cm."""

    def __init__(self, task: str = "push-disturbed", *, max_episode_steps: int = 200, **options: Any) -> None:
        """Load the world; `options` as for `MetaWorld`."""
        super().__init__(task, max_episode_steps=max_episode_steps, **options)
        model = self._world.model
        model.body("obj").inertia = _PUCK_INERTIA
        mujoco.mj_setConst(model, self._world.data)

    def knock(self, tick: int) -> np.ndarray:
        """Return the velocity the puck is given at a tick of this episode, xy [m/s]; zero at most ticks."""
        return self._knocks.get(tick, np.zeros(2))

    def _begin(self, random: np.random.Generator) -> None:
        ticks = random.integers(*self.START_TICK) + np.cumsum(random.integers(*self.PAUSE_TICKS, self.KNOCKS))
        angles = random.uniform(0.0, 2.0 * np.pi, self.KNOCKS)
        speeds = random.uniform(*self.SPEED_M_S, self.KNOCKS)
        kicks = speeds[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (knocks, 2)
        self._knocks = dict(zip(ticks.tolist(), kicks, strict=True))
        self._held = 0

    def _disturb(self, tick: int) -> None:
        if tick in self._knocks:
            self._world.data.joint("objjoint").qvel[:2] = self._knocks[tick]

    def _judge(self, is_success: bool) -> bool:
        self._held = self._held + 1 if is_success else 0
        return self._held >= self.HOLD_TICKS
