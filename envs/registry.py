"""Worlds by type and task: ours, those of installed packages, and lerobot's own types."""

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, cast

from vivace.envs.protocol import TaskInfo, WorldType
from vivace.policies.errors import UnknownEnvironment
from vivace.policies.registry import Registry

WORLDS = Registry(
    "environment type",
    "vivace.envs",
    {"metaworld": "vivace.envs.metaworld.tasks", "gym": "vivace.envs.gymnasium_env:GYM"},
)
"""`--env.type` -> its `WorldType`; any other is lerobot's (`lerobot_env`)."""
register_world = WORLDS.register
DEFAULT_TYPE = "metaworld"
"""The type when none is asked for: the bundled checkpoints' own."""
_MODULES = {"metaworld": "metaworld", "pusht": "gym_pusht", "aloha": "gym_aloha"}
"""Type -> the package that it is made of, of those that are quick to make."""
PACKAGES = ("gymnasium", "metaworld", "mujoco", "gym-pusht", "gym-aloha", "hf-libero")
"""Distributions that decide what a simulation gives, as far as they are installed."""


def make(env_type: str, task: str = "", **options: Any) -> Any:
    """Make a world.

    Args:
        env_type: e.g. "metaworld".
        task: one of `task_names(env_type)`; the type's own when empty.
        options: `control_hz`, `spec` and the type's own; see `WorldType.make`.

    Returns:
        A `World`, with whatever more its type has.

    Raises:
        UnknownEnvironment: the type or the task does not exist.
        BadSetting: it cannot be made so; a package it needs may be missing.
    """
    found = _type_with(env_type, task)
    return found.make(task or _first(found), **options)


def describe(env_type: str, task: str = "", **options: Any) -> TaskInfo:
    """Return what is known of a task before its world is made; raises `UnknownEnvironment`."""
    found = _type_with(env_type, task)
    return found.describe(task or _first(found), **(options if hasattr(found, "Options") else {}))


def instruction(env_type: str, task: str, **options: Any) -> str:
    """Return the text that tells a language-conditioned policy what to do; raises `UnknownEnvironment`."""
    return describe(env_type, task, **options).instruction


def task_names(env_type: str) -> tuple[str, ...]:
    """Return the tasks of a type of world; raises `UnknownEnvironment`."""
    return world_type(env_type).task_names()


def own_task(env_type: str, **options: Any) -> str:
    """Return the task of a type when none is asked for; raises `UnknownEnvironment`."""
    found = world_type(env_type)
    own = getattr(found, "own_task", None)
    return own(**options) if own is not None else _first(found)


def installed_types() -> tuple[str, ...]:
    """Return the types of world that are installed, of those that are quick to make."""
    return tuple(name for name, module in _MODULES.items() if find_spec(module) is not None)


def nearest(name: str, known: tuple[str, ...]) -> list[str]:
    """Return the known names most like `name`; all of them if none is."""
    return get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)


def world_type(env_type: str) -> WorldType:
    """Return a type of world by its name; raises `UnknownEnvironment`."""
    found: WorldType | None = WORLDS.find(env_type)
    if found is not None:
        return found
    theirs: tuple[str, ...] = ()
    if find_spec("lerobot") is not None:
        from vivace.envs.lerobot_env import lerobot_names, lerobot_world  # loads lerobot and torch

        theirs = lerobot_names()
        if env_type in theirs:
            return cast(WorldType, lerobot_world(env_type))
    known = ", ".join((*WORLDS.names(), *theirs))
    missing = "" if theirs else "; lerobot's own types need pip install 'vivace[sim]'"
    raise UnknownEnvironment(f"environment type {env_type!r} does not exist; the types: {known}{missing}")


def _first(found: WorldType) -> str:
    return next(iter(found.task_names()), "")


def _type_with(env_type: str, task: str) -> WorldType:
    found = world_type(env_type)
    names = found.task_names()
    if task and task not in names and not getattr(found, "is_open", False):
        raise UnknownEnvironment(
            f"environment type {env_type!r} has no task {task!r}; the nearest of its {len(names)} tasks: "
            f"{', '.join(nearest(task, names))}"
        )
    return found
