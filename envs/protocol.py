"""What a world is to those who run it, and what is known of it before it is made."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vivace.policies.spec import ActionKind, PolicySpec


class World(Protocol):
    """A gymnasium environment with lerobot's observation keys; `reset(seed=…)` decides the whole episode.

    An observation is a dict such as {"observation.state": (n,) float32, "observation.images.<camera>": HWC
    uint8}; one that is nested is read with dotted keys. What else a world may have, each by itself:

        render()            a frame for a film, HWC uint8; without it there is none
        max_episode_steps   longest episode; None: it has no end, and `--env.max_steps` is needed
        initial_action      what to hold before the first action of this episode (A,); zeros if it is silent
        action_names        names of the action's dimensions
        scene               MuJoCo's (model, data), for a window
    """

    control_hz: float
    """Rate of its steps [Hz]: the world moves on by one control period a step."""

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode that a seed decides; returns observation and info."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance by one control period; returns observation, reward, terminated, truncated and info.

        `info["is_success"]` says whether the task is done now; a step that leaves it out says no, but an
        episode that says neither it nor a score is refused. `info["score"]` may say how well it is done now,
        more is better.
        """

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is known of a task before its world is made."""

    control_hz: float | None
    """Control rate when none is asked for [Hz]; None: the world does not say, and one must be asked for."""
    action_kinds: tuple[ActionKind, ...] = ()
    """What each dimension of an action means; empty: the world does not say."""
    action_dim: int | None = None
    """Dimensions of an action; None: as many as `action_kinds`, if it says them."""
    instruction: str = ""
    """Text for language-conditioned policies."""
    physics_hz: float | None = None
    """Rate of the physics' own steps [Hz]; None if there are none, or it is not known."""
    observations: tuple[str, ...] = ()
    """lerobot's keys of what it shows; empty: the world does not say, or shows what it is asked for."""


@dataclass(frozen=True)
class NoOptions:
    """What a type of world without `Options` has."""


class WorldType(Protocol):
    """One type of world, `--env.type`: an object or a module with these three functions.

    What else it may have, each by itself:

        Options              a dataclass whose fields are flags, `--env.<field>`, and which the functions
                             below take by name
        own_task(**options)  the task when none is asked for; the first one if it does not say
        is_open              other tasks than `task_names()` may exist
        RECORDER             "package.module:function" that `vivace collect` calls: what its scripted experts
                             demonstrate, as of `demonstrations.record`
    """

    def task_names(self) -> tuple[str, ...]:
        """Return its tasks."""

    def describe(self, task: str, **options: Any) -> TaskInfo:
        """Return what is known of a task."""

    def make(
        self, task: str, *, control_hz: float | None = None, spec: PolicySpec | None = None, **options: Any
    ) -> World:
        """Make the world of a task.

        Args:
            task: one of `task_names()`.
            control_hz: control rate [Hz]; the task's own when None.
            spec: of the policy that will act in it: its cameras and their sizes, and whether it looks back.
            options: its own; `max_steps` too, where an episode is to have another length than the task's own.
        """
