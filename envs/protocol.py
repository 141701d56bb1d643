"""What a world is to those who run it, and what is known of it before it is made."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vivace.policies.spec import ActionKind


class World(Protocol):
    """A gymnasium environment with lerobot's observation keys; `reset(seed=…)` decides the whole episode.

    An observation is a dict such as {"observation.state": (n,) float32, "observation.images.<camera>": HWC
    uint8}. It may also have `render()`, which gives a frame for a film, HWC uint8; without it there is none.
    """

    control_hz: float
    """Rate of its steps [Hz]: the world moves on by one control period a step."""

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode that a seed decides; returns observation and info."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance by one control period; returns observation, reward, terminated, truncated and info.

        `info["is_success"]` says whether the task is done now.
        """

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is known of a task before its world is made."""

    control_hz: float
    """Control rate when none is asked for [Hz]."""
    action_kinds: tuple[ActionKind, ...] = ()
    """What each dimension of an action means; empty: the world does not say."""
    instruction: str = ""
    """Text for language-conditioned policies."""
    physics_hz: float | None = None
    """Rate of the physics' own steps [Hz]; None if there are none, or it is not known."""


class WorldType(Protocol):
    """One type of world, `--env.type`: an object or a module with these three functions."""

    def task_names(self) -> tuple[str, ...]:
        """Return its tasks."""

    def describe(self, task: str) -> TaskInfo:
        """Return what is known of a task."""

    def make(self, task: str, *, control_hz: float | None = None, **options: Any) -> World:
        """Make the world of a task.

        Args:
            task: one of `task_names()`.
            control_hz: control rate [Hz]; the task's own when None.
            options: for a policy that sees `cameras` (their names), `image_size` (edge of their square
                images [px]) and `lazy_images` (each observation is looked at before the next step).
        """
