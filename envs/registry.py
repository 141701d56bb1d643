"""Environments by type and task, and their gymnasium names."""

import importlib
import json
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from vivace.policies.errors import UnknownEnvironment

if TYPE_CHECKING:
    from vivace.envs.metaworld.world import MetaWorld

ENV_TYPES = ("metaworld",)
OWN_TASKS = {
    "reach-moving": "vivace.envs.metaworld.dynamic:MovingReach",
    "push-disturbed": "vivace.envs.metaworld.dynamic:DisturbedPush",
    "window-open-halfway": "vivace.envs.metaworld.halfway:WindowOpen",
    "window-close-halfway": "vivace.envs.metaworld.halfway:WindowClose",
    "drawer-open-halfway": "vivace.envs.metaworld.halfway:DrawerOpen",
    "drawer-close-halfway": "vivace.envs.metaworld.halfway:DrawerClose",
    "faucet-open-halfway": "vivace.envs.metaworld.halfway:FaucetOpen",
    "faucet-close-halfway": "vivace.envs.metaworld.halfway:FaucetClose",
}
"""Task made of one of Meta-World's -> where its environment is."""


def make(env_type: str, task: str, **options: Any) -> "MetaWorld":
    """Make an environment.

    Args:
        env_type: "metaworld".
        task: one of `task_names(env_type)`.
        options: of the environment, e.g. `image_size`, `max_episode_steps`, `terminate_on_success`.

    Raises:
        UnknownEnvironment: the type or the task does not exist.
    """
    return env_class(env_type, task)(task, **options)


def env_class(env_type: str, task: str) -> "type[MetaWorld]":
    """Return the class of a task's environment; raises `UnknownEnvironment`."""
    names = task_names(env_type)
    if task not in names:
        raise UnknownEnvironment(
            f"environment type {env_type!r} has no task {task!r}; the nearest of its {len(names)} tasks: "
            f"{', '.join(nearest(task, names))}"
        )
    module, name = OWN_TASKS.get(task, "vivace.envs.metaworld.world:MetaWorld").split(":")
    return getattr(importlib.import_module(module), name)


def instruction(env_type: str, task: str) -> str:
    """Return the text that tells a language-conditioned policy what to do; raises `UnknownEnvironment`."""
    return env_class(env_type, task).instruction or task_descriptions()[task]


def task_names(env_type: str) -> tuple[str, ...]:
    """Return the tasks of an environment type, our own first.

    Raises:
        UnknownEnvironment: the type does not exist.
    """
    if env_type not in ENV_TYPES:
        raise UnknownEnvironment(
            f"environment type {env_type!r} does not exist; the types: {', '.join(ENV_TYPES)}"
        )
    return (*OWN_TASKS, *task_descriptions())


def nearest(name: str, known: tuple[str, ...]) -> list[str]:
    """Return the known names most like `name`; all of them if none is."""
    return get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)


@cache
def task_descriptions() -> dict[str, str]:
    """Return Meta-World's tasks and their instructions, in lerobot's words."""
    lerobot = find_spec("lerobot")  # found without importing lerobot's environments and torch
    if lerobot is None or lerobot.origin is None:
        raise UnknownEnvironment("lerobot is not installed, it names the tasks; pip install 'vivace[sim]'")
    config = Path(lerobot.origin).parent / "envs" / "metaworld_config.json"
    return json.loads(config.read_text())["TASK_DESCRIPTIONS"]


gymnasium.register("vivace/MetaWorld-v0", entry_point="vivace.envs.metaworld.world:MetaWorld")
gymnasium.register("vivace/ReachMoving-v0", entry_point=OWN_TASKS["reach-moving"])
gymnasium.register("vivace/PushDisturbed-v0", entry_point=OWN_TASKS["push-disturbed"])
