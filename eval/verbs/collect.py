"""`vivace collect`: demonstrations of a task by its scripted expert."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.envs.demonstrations import CollectSettings, record
from vivace.envs.registry import DEFAULT_TYPE
from vivace.eval.options import EnvOptions
from vivace.eval.scale.hire import spread
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.terminal import progress
from vivace.policies.errors import BadSetting


@dataclass(kw_only=True)
class CollectOptions:
    """What to demonstrate."""

    episodes: int = 300
    """Successful episodes that are stored."""
    seed: int = 0
    """Of the first episode; the following ones count up."""
    image_size: int = 0
    """Edge of the stored camera images [px]; 0 stores states only."""
    cameras: list[str] = field(default_factory=lambda: ["close_up"])
    """Cameras whose images are stored."""
    max_steps: int | None = None
    """Ticks an episode may take; the task's own number when not given."""


@dataclass(kw_only=True)
class DemonstratedEnv(EnvOptions):
    """Which task. A class, for draccus keeps its defaults."""

    type: str = DEFAULT_TYPE
    """Of a world that has scripted experts."""


@dataclass(kw_only=True)
class CollectCommand:
    """Demonstrate a task with its scripted expert and store a LeRobotDataset.

    Example: vivace collect --env.task=push-v3 --collect.episodes=300 --output_dir=data/push-v3
    """

    env: DemonstratedEnv = field(default_factory=DemonstratedEnv)
    collect: CollectOptions = field(default_factory=CollectOptions)
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    output_dir: str
    """Folder of the dataset."""


def run(command: CollectCommand) -> tuple[dict[str, Any], bool]:
    """Demonstrate a task and store it as a LeRobotDataset."""
    options, (task, *others) = command.collect, command.env.tasks
    if command.scale.share:
        raise BadSetting(
            f"scale.shard={command.scale.shard}: a dataset is one; give other --collect.seed to other "
            "machines, and all their folders to vivace train --data"
        )
    if others:
        raise BadSetting(f"env.task={command.env.task!r}: collect takes one task; run it once for each")
    settings = CollectSettings(
        task=task,
        env_type=command.env.type,
        episodes=options.episodes,
        seed=options.seed,
        image_size=options.image_size,
        cameras=tuple(options.cameras),
        control_hz=command.env.control_hz,
        max_episode_steps=options.max_steps,
    )
    tries = 0
    with progress() as bars:
        bar = bars.add_task(f"demonstrating {task}", total=options.episodes)

        def on_episode(kept: int, tried: int) -> None:
            nonlocal tries
            tries = tried
            bars.update(bar, completed=kept)

        elsewhere = None if command.scale.is_here else spread(command.scale)
        record(settings, Path(command.output_dir), on_episode, elsewhere)
    return {"dataset": command.output_dir, "episodes": options.episodes, "tried": tries}, True
