"""Demonstrations: how they are asked for, and a LeRobotDataset of them read as arrays."""

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np

from vivace.envs.registry import DEFAULT_TYPE, world_type
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import IMAGES, STATE

if TYPE_CHECKING:
    import pyarrow

EVALUATION_SEED = 100_000
"""Seeds from here on are for evaluation; demonstrations stay below."""

OnEpisode = Callable[[int, int], None]
"""Told (episodes kept, episodes tried) after each episode."""
Spread = Callable[[Callable[[int], Any], Iterable[int]], Generator[Any, None, None]]
"""As `map`, of a function that can be pickled; it may call it for more seeds than are read."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """How executed actions differ from the expert's, so that demonstrations show recoveries."""

    scales: tuple[float, ...] = (0.0, 0.1, 0.2)
    """An episode draws one; standard deviation of the noise on each displacement, about. 0 is clean."""
    probabilities: tuple[float, ...] = (0.35, 0.4, 0.25)
    """Of the scales, in order."""
    memory: float = 0.7
    """Correlation of the noise from one tick to the next, in [0, 1)."""
    burst_probability: float = 0.03
    """Of a burst to begin at a tick of a noisy episode: the robot stands still, or is pushed one way."""

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.probabilities) or abs(sum(self.probabilities) - 1.0) > 1e-9:
            raise BadSetting(
                f"noise scales {self.scales} and probabilities {self.probabilities} do not match; give one "
                "probability per scale, adding up to 1"
            )
        if min(self.scales) < 0.0 or not 0.0 <= self.memory < 1.0 or not 0.0 <= self.burst_probability <= 1.0:
            raise BadSetting(
                f"noise scales {self.scales}, memory {self.memory}, burst_probability "
                f"{self.burst_probability}; needed: scales >= 0, memory in [0, 1), probability in [0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What to demonstrate, and how often."""

    task: str
    env_type: str = DEFAULT_TYPE
    episodes: int = 300
    """Successful episodes to keep; failed ones are thrown away."""
    seed: int = 0
    """Of the first episode; the following ones count up."""
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    """Perturbation of the executed actions; the stored label stays the expert's own."""
    max_episode_steps: int | None = None
    """Ticks an episode may take; the task's own number when None."""
    tail_steps: int = 15
    """Ticks kept after the first success, so that a policy learns to stay there."""
    image_size: int = 0
    """Edge of the stored camera images [px]; 0 stores states only."""
    cameras: tuple[str, ...] = ("corner2",)
    control_hz: float | None = None
    """Control rate [Hz], written as the dataset's fps, a whole number; the task's own when None."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.tail_steps < 0:
            raise BadSetting(
                f"episodes {self.episodes}, tail_steps {self.tail_steps}; needed: episodes >= 1, "
                "tail_steps >= 0"
            )
        if self.control_hz is not None and (self.control_hz < 1 or self.control_hz % 1):
            raise BadSetting(f"control_hz {self.control_hz}; a dataset's fps is a whole number of 1 or more")
        if not 0 <= self.seed <= EVALUATION_SEED - self.episodes:
            raise BadSetting(
                f"seed {self.seed} with {self.episodes} episodes leaves 0..{EVALUATION_SEED - 1}; seeds from "
                f"{EVALUATION_SEED} on are for evaluation"
            )


@dataclass(frozen=True)
class Demonstrations:
    """Steps of many episodes, one after the other."""

    state: np.ndarray
    """Before the action, (N, 39) float32."""
    action: np.ndarray
    """The expert's clean action at that state, (N, 4) float32 in [-1, 1]."""
    episode: np.ndarray
    """Number of the episode a step belongs to, ascending from 0, (N,) int64."""
    task: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index of a step's instruction, (N,) int64."""
    instructions: tuple[str, ...] = ()
    """Instruction of each task."""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Camera key -> images before the action, (N, 3, height, width) uint8; empty unless asked for."""
    control_hz: float | None = None
    """Rate they were shown at [Hz], the dataset's fps; None if unknown."""

    @classmethod
    def join(cls, parts: "Sequence[Demonstrations]") -> "Demonstrations":
        """Put several sets one after the other, episodes and tasks numbered on.

        Raises:
            BadSetting: they were shown at different rates.
        """
        rates = {part.control_hz for part in parts}
        if len(rates) > 1:
            raise BadSetting(
                f"the datasets have rates of {', '.join(f'{rate} Hz' for rate in sorted(rates, key=str))}; a "
                "policy learns one rate: collect them again with one --env.control_hz"
            )
        episodes, tasks, first = [], [], 0
        for i, part in enumerate(parts):
            episodes.append(part.episode + first)
            tasks.append(part.task + sum(len(before.instructions) for before in parts[:i]))
            first += int(part.episode.max()) + 1
        return cls(
            np.concatenate([part.state for part in parts]),
            np.concatenate([part.action for part in parts]),
            np.concatenate(episodes),
            np.concatenate(tasks),
            tuple(text for part in parts for text in part.instructions),
            {key: np.concatenate([part.images[key] for part in parts]) for key in parts[0].images},
            parts[0].control_hz,
        )


def record(
    settings: CollectSettings,
    path: Path,
    on_episode: OnEpisode | None = None,
    spread: Spread | None = None,
) -> None:
    """Let a world's scripted expert demonstrate a task and store it as a LeRobotDataset, whole or not at all.

    Args:
        settings: what to demonstrate.
        path: folder to make; nothing is written there before everything is done.
        on_episode: progress.
        spread: runs episodes elsewhere, side by side; here, one after the other, when None. What is stored is
            the same.

    Raises:
        UnknownEnvironment: the type of world has no scripted experts, or none for this task.
        BadSetting: `path` exists already.
    """
    module, _, name = getattr(world_type(settings.env_type), "RECORDER", "").partition(":")
    if not module:
        raise UnknownEnvironment(
            f"environment type {settings.env_type!r} has no scripted experts to collect from; train on a "
            "LeRobotDataset of your own: vivace train --data='[FOLDER]'"
        )
    elsewhere = () if spread is None else (spread,)  # a recorder of another package may not know of it
    getattr(import_module(module), name)(settings, path, on_episode, *elsewhere)


def load_demonstrations(path: Path, images: bool = False) -> Demonstrations:
    """Read states, labels and instructions of a LeRobotDataset folder.

    Args:
        path: the folder.
        images: read the cameras' images too.

    Raises:
        BadSetting: the folder holds no such dataset.
    """
    import pyarrow.parquet

    files = sorted(Path(path).glob("data/*/*.parquet"))
    if not files:
        raise BadSetting(f"{path} holds no data/*/*.parquet; give the folder of a LeRobotDataset")
    columns = [STATE, "action", "episode_index", "task_index"]
    tables = [pyarrow.parquet.read_table(file, columns=columns) for file in files]
    state, action, episode, task = (
        np.concatenate([_column(table[name]) for table in tables]) for name in columns
    )
    known = pyarrow.parquet.read_table(Path(path) / "meta" / "tasks.parquet").to_pandas()
    info = json.loads((Path(path) / "meta" / "info.json").read_text())
    instructions = tuple(str(text) for text in known.sort_values("task_index").index)
    return Demonstrations(
        state.astype(np.float32),
        action.astype(np.float32),
        episode.astype(np.int64),
        task.astype(np.int64),
        instructions,
        _images(files) if images else {},
        float(info["fps"]),
    )


def _images(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Decode every image column (N, 3, height, width)."""
    import pyarrow.parquet

    found: dict[str, list[np.ndarray]] = {}
    for file in files:
        schema = pyarrow.parquet.read_schema(file)
        keys = [name for name in schema.names if name.startswith(IMAGES)]
        for key in keys:
            column = pyarrow.parquet.read_table(file, columns=[key])[key]
            decoded = [imageio.imread(cell["bytes"]).transpose(2, 0, 1) for cell in column.to_pylist()]
            found.setdefault(key, []).append(np.stack(decoded))
    if not found:
        raise BadSetting(f"{files[0].parent} holds no camera images; collect with --collect.image_size=128")
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _column(column: "pyarrow.ChunkedArray") -> np.ndarray:
    """Turn a column of numbers or of equally long lists into an array, (N,) or (N, D)."""
    array = column.combine_chunks()
    if not hasattr(array, "flatten") or not hasattr(array.type, "value_type"):
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
