"""Tasks in pairs that begin alike: only the instruction tells which way an object is to be moved.

A window, a drawer and a faucet start between their ends, at places drawn alike for both tasks of a pair, and
the observation images show no goal. So a policy that does not read its instruction fails every other time.
"""

from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box

from vivace.envs.metaworld.world import MetaWorld


class Halfway(MetaWorld):
    """One task of such a pair; observation, action and success as in Meta-World's task of that name."""

    shows_goal: ClassVar[bool] = False
    episode_s: ClassVar[float] = 1.875
    joint: ClassVar[str]
    """What is moved."""
    start: ClassVar[tuple[float, float]]
    """Range of the joint's first position [m or rad]."""
    place: ClassVar[tuple[tuple[float, float, float], tuple[float, float, float]]]
    """Lowest and highest place of the object, xyz [m]."""

    def __init__(self, task: str = "", **options: Any) -> None:
        """Load the world; `options` as for `MetaWorld`."""
        super().__init__(task, **options)
        low, high = (np.array(corner) for corner in self.place)
        self._world._random_reset_space = Box(low, high, dtype=np.float64)

    def _begin(self, random: np.random.Generator) -> None:
        world = self._world
        world.data.joint(self.joint).qpos = random.uniform(*self.start)
        mujoco.mj_forward(world.model, world.data)


class _Window(Halfway):
    joint = "window_slide"
    start = (0.07, 0.13)
    place = ((-0.1, 0.75, 0.16), (0.1, 0.9, 0.16))


class WindowOpen(_Window):
    """Slide the window to the right."""

    base_task = "window-open-v3"
    instruction = "Open the window"


class WindowClose(_Window):
    """Slide the window to the left."""

    base_task = "window-close-v3"
    instruction = "Close the window"


class _Drawer(Halfway):
    joint = "goal_slidey"
    start = (-0.1, -0.06)
    place = ((-0.1, 0.9, 0.0), (0.1, 0.9, 0.0))


class DrawerOpen(_Drawer):
    """Pull the drawer out."""

    base_task = "drawer-open-v3"
    instruction = "Open the drawer"


class DrawerClose(_Drawer):
    """Push the drawer in."""

    base_task = "drawer-close-v3"
    instruction = "Close the drawer"


class _Faucet(Halfway):
    joint = "knob_Joint_1"
    start = (-0.2, 0.2)
    place = ((-0.05, 0.8, 0.0), (0.05, 0.85, 0.0))


class FaucetOpen(_Faucet):
    """Turn the faucet's handle to the right."""

    base_task = "faucet-open-v3"
    instruction = "Turn the faucet on"


class FaucetClose(_Faucet):
    """Turn the faucet's handle to the left."""

    base_task = "faucet-close-v3"
    instruction = "Turn the faucet off"
