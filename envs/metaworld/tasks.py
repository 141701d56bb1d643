"""The tasks of type "metaworld": ours, and Meta-World's own."""

import json
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.envs.protocol import TaskInfo
from vivace.policies.errors import UnknownEnvironment

if TYPE_CHECKING:
    from vivace.envs.metaworld.world import MetaWorld

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


def task_names() -> tuple[str, ...]:
    """Return the tasks, our own first."""
    return (*OWN_TASKS, *task_descriptions())


def describe(task: str) -> TaskInfo:
    """Return what is known of a task before its world is made."""
    world = _world(task)
    return TaskInfo(
        control_hz=world.own_hz,
        action_kinds=world.action_kinds,
        instruction=world.instruction or task_descriptions()[task],
        physics_hz=world.physics_hz,
    )


def make(task: str, **options: Any) -> "MetaWorld":
    """Make the world of a task; `options` as of `MetaWorld`."""
    return _world(task)(task, **options)


def _world(task: str) -> "type[MetaWorld]":
    module, name = OWN_TASKS.get(task, "vivace.envs.metaworld.world:MetaWorld").split(":")
    return getattr(import_module(module), name)


@cache
def task_descriptions() -> dict[str, str]:
    """Return Meta-World's tasks and their instructions, in lerobot's words."""
    lerobot = find_spec("lerobot")  # found without importing lerobot's environments and torch
    if lerobot is None or lerobot.origin is None:
        raise UnknownEnvironment("lerobot is not installed, it names the tasks; pip install 'vivace[sim]'")
    config = Path(lerobot.origin).parent / "envs" / "metaworld_config.json"
    return json.loads(config.read_text())["TASK_DESCRIPTIONS"]
