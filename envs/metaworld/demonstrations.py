"""Demonstrations by the scripted experts: collected, stored as a LeRobotDataset, read back as arrays."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
import numpy as np

from vivace.envs.metaworld.experts import ActionNoise, Expert, NoiseSettings, expert
from vivace.envs.metaworld.world import ACTION_DIM, IMAGE_KEY, STATE_DIM, STATE_KEY, MetaWorld
from vivace.envs.registry import make
from vivace.policies.errors import BadSetting

if TYPE_CHECKING:
    import pyarrow

EVALUATION_SEED = 100_000
"""Seeds from here on are for evaluation; demonstrations stay below."""

_WORST_ODDS = 10
"""An expert that succeeds in fewer than one of so many episodes ends the collection."""

OnEpisode = Callable[[int, int], None]
"""Told (episodes kept, episodes tried) after each episode."""


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What to demonstrate, and how often."""

    task: str
    env_type: str = "metaworld"
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


@dataclass(frozen=True)
class Episode:
    """One successful demonstration, observation by observation."""

    observations: list[dict[str, np.ndarray]]
    actions: list[np.ndarray]


def collect(settings: CollectSettings, on_episode: OnEpisode | None = None) -> Demonstrations:
    """Demonstrate a task and return states and labels as arrays."""
    with closing(_make_env(settings)) as env:
        episodes, control_hz = list(_episodes(env, settings, on_episode)), env.control_hz
    lengths = [len(episode.actions) for episode in episodes]
    return Demonstrations(
        state=np.array([values[STATE_KEY] for episode in episodes for values in episode.observations]),
        action=np.array([action for episode in episodes for action in episode.actions]),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        control_hz=control_hz,
    )


def record(settings: CollectSettings, path: Path, on_episode: OnEpisode | None = None) -> None:
    """Demonstrate a task and store it as a LeRobotDataset, whole or not at all.

    Args:
        settings: what to demonstrate.
        path: folder to make; nothing is written there before everything is done.
        on_episode: progress.

    Raises:
        BadSetting: `path` exists already.
    """
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # loads torch

    if path.exists():
        raise BadSetting(f"{path} exists already; give another output_dir or remove it")
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()  # one bar an episode
    try:
        with closing(_make_env(settings)) as env:
            dataset = LeRobotDataset.create(
                repo_id=f"vivace/{settings.task}",
                fps=round(env.control_hz),
                features=_features(env),
                root=unfinished,
                robot_type="sawyer",
                use_videos=False,
            )
            try:
                for episode in _episodes(env, settings, on_episode):
                    for values, action in zip(episode.observations, episode.actions, strict=True):
                        dataset.add_frame({**values, "action": action, "task": env.task_description})
                    dataset.save_episode()
            finally:
                dataset.finalize()  # or its destructor would write the folder anew
        unfinished.rename(path)
    finally:
        datasets.enable_progress_bars()
        shutil.rmtree(unfinished, ignore_errors=True)


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
    columns = [STATE_KEY, "action", "episode_index", "task_index"]
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
        keys = [name for name in schema.names if name.startswith(IMAGE_KEY)]
        for key in keys:
            column = pyarrow.parquet.read_table(file, columns=[key])[key]
            decoded = [imageio.imread(cell["bytes"]).transpose(2, 0, 1) for cell in column.to_pylist()]
            found.setdefault(key, []).append(np.stack(decoded))
    if not found:
        raise BadSetting(f"{files[0].parent} holds no camera images; collect with --collect.image_size=128")
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _make_env(settings: CollectSettings) -> MetaWorld:
    return make(
        settings.env_type,
        settings.task,
        image_size=settings.image_size,
        cameras=settings.cameras,
        control_hz=settings.control_hz,
        max_episode_steps=settings.max_episode_steps,
    )


def _episodes(env: MetaWorld, settings: CollectSettings, on_episode: OnEpisode | None) -> Iterator[Episode]:
    """Demonstrate until enough episodes succeeded, giving up when fewer than one in ten does."""
    act = expert(settings.task, env.control_hz)
    kept = tried = 0
    while kept < settings.episodes:
        if tried >= 50 and kept * _WORST_ODDS < tried:
            raise BadSetting(
                f"the expert of {settings.task!r} succeeded in {kept} of {tried} episodes; lower the noise "
                f"(scales {settings.noise.scales}) or raise max_episode_steps ({env.max_episode_steps})"
            )
        seed = settings.seed + tried
        if seed >= EVALUATION_SEED:
            raise BadSetting(f"seeds below {EVALUATION_SEED} are used up after {kept} episodes; lower seed")
        noise = ActionNoise(settings.noise, seed, env.control_hz)
        episode = _demonstrate(env, act, noise, seed, settings.tail_steps)
        tried += 1
        kept += episode is not None
        if on_episode is not None:
            on_episode(kept, tried)
        if episode is not None:
            yield episode


def _demonstrate(
    env: MetaWorld, act: Expert, noise: ActionNoise, seed: int, tail_steps: int
) -> Episode | None:
    """Run one episode; None if it fails."""
    observation, _ = env.reset(seed=seed)
    observations: list[dict[str, np.ndarray]] = []
    actions: list[np.ndarray] = []
    success_step, is_over = -1, False
    while not is_over:
        action = act(observation[STATE_KEY])
        observations.append(observation)
        actions.append(action)
        observation, _, _, is_over, info = env.step(noise(action))
        if success_step < 0 and info["is_success"]:
            success_step = len(actions)
        is_over = is_over or (success_step >= 0 and len(actions) >= success_step + tail_steps)
    return Episode(observations, actions) if success_step >= 0 else None


def _features(env: MetaWorld) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {
        STATE_KEY: {"dtype": "float32", "shape": (STATE_DIM,), "names": None},
        "action": {"dtype": "float32", "shape": (ACTION_DIM,), "names": ["x", "y", "z", "gripper"]},
    }
    for key, shape in env.image_shapes.items():
        features[key] = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    return features


def _column(column: "pyarrow.ChunkedArray") -> np.ndarray:
    """Turn a column of numbers or of equally long lists into an array, (N,) or (N, D)."""
    array = column.combine_chunks()
    if not hasattr(array, "flatten") or not hasattr(array.type, "value_type"):
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
