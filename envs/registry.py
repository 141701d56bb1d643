"""Worlds by type and task."""

from difflib import get_close_matches
from typing import Any

from vivace.envs.protocol import TaskInfo, WorldType
from vivace.policies.errors import UnknownEnvironment
from vivace.policies.registry import Registry

WORLDS = Registry("environment type", "vivace.envs", {"metaworld": "vivace.envs.metaworld.tasks"})
"""`--env.type` -> its `WorldType`."""
register_world = WORLDS.register


def make(env_type: str, task: str, **options: Any) -> Any:
    """Make a world.

    Args:
        env_type: e.g. "metaworld".
        task: one of `task_names(env_type)`.
        options: of the world, e.g. `control_hz`; see `WorldType.make`.

    Returns:
        A `World`, with whatever more its type has.

    Raises:
        UnknownEnvironment: the type or the task does not exist.
    """
    return _type_with(env_type, task).make(task, **options)


def describe(env_type: str, task: str) -> TaskInfo:
    """Return what is known of a task before its world is made; raises `UnknownEnvironment`."""
    return _type_with(env_type, task).describe(task)


def instruction(env_type: str, task: str) -> str:
    """Return the text that tells a language-conditioned policy what to do; raises `UnknownEnvironment`."""
    return describe(env_type, task).instruction


def task_names(env_type: str) -> tuple[str, ...]:
    """Return the tasks of a type of world; raises `UnknownEnvironment`."""
    return _type(env_type).task_names()


def nearest(name: str, known: tuple[str, ...]) -> list[str]:
    """Return the known names most like `name`; all of them if none is."""
    return get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)


def _type(env_type: str) -> WorldType:
    found: WorldType | None = WORLDS.find(env_type)
    if found is None:
        raise UnknownEnvironment(
            f"environment type {env_type!r} does not exist; the types: {', '.join(WORLDS.names())}"
        )
    return found


def _type_with(env_type: str, task: str) -> WorldType:
    found = _type(env_type)
    names = found.task_names()
    if task not in names:
        raise UnknownEnvironment(
            f"environment type {env_type!r} has no task {task!r}; the nearest of its {len(names)} tasks: "
            f"{', '.join(nearest(task, names))}"
        )
    return found
