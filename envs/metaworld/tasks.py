"""The tasks of type "metaworld": ours, and Meta-World's own."""

import json
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.envs.protocol import TaskInfo
from vivace.policies.arrays import is_image
from vivace.policies.errors import UnknownEnvironment
from vivace.policies.spec import STATE, PolicySpec

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


RECORDER = "vivace.envs.metaworld.demonstrations:record"
"""Where what demonstrates them is."""


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
        action_dim=len(world.action_kinds),
        physics_hz=world.physics_hz,
    )


def make(
    task: str, *, spec: PolicySpec | None = None, max_steps: int | None = None, **options: Any
) -> "MetaWorld":
    """Make the world of a task, with the cameras that a policy looks through.

    Args:
        task: one of `task_names()`.
        max_steps: longest episode; the task's own when None.
        spec: of the policy. Its only camera, "observation.image", is lerobot's: corner2.
        options: as of `MetaWorld`.

    Raises:
        UnknownEnvironment: the policy was trained in lerobot's Meta-World, which is another one.
    """
    if spec is not None:
        if spec.observation_shapes.get(STATE) == (4,):
            raise UnknownEnvironment(
                "the policy feels 4 numbers, as lerobot's Meta-World gives them; here there are 39, and "
                "other pictures: evaluate it in --env.type=lerobot_metaworld"
            )
        seen = {key: shape[-2:] for key, shape in spec.observation_shapes.items() if is_image(key)}
        options = {"image_sizes": seen, "lazy_images": spec.n_obs_steps == 1, **options}
    if max_steps is not None:
        options["max_episode_steps"] = max_steps
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
