"""Demonstrations by the scripted experts: collected, and stored as a LeRobotDataset."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vivace.envs.demonstrations import EVALUATION_SEED, CollectSettings, Demonstrations, OnEpisode, Spread
from vivace.envs.metaworld.experts import ActionNoise, Expert, expert
from vivace.envs.metaworld.world import ACTION_DIM, STATE_DIM, STATE_KEY, MetaWorld
from vivace.envs.registry import make
from vivace.policies.errors import BadSetting

_WORST_ODDS = 10
"""An expert that succeeds in fewer than one of so many episodes ends the collection."""


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


def record(
    settings: CollectSettings,
    path: Path,
    on_episode: OnEpisode | None = None,
    spread: Spread | None = None,
) -> None:
    """Demonstrate a task, as of `envs.demonstrations`."""
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
                for episode in _episodes(env, settings, on_episode, spread):
                    for values, action in zip(episode.observations, episode.actions, strict=True):
                        dataset.add_frame({**values, "action": action, "task": env.task_description})
                    dataset.save_episode()
            finally:
                dataset.finalize()  # or its destructor would write the folder anew
        unfinished.rename(path)
    finally:
        datasets.enable_progress_bars()
        shutil.rmtree(unfinished, ignore_errors=True)


def _make_env(settings: CollectSettings) -> MetaWorld:
    return make(
        settings.env_type,
        settings.task,
        image_size=settings.image_size,
        cameras=settings.cameras,
        control_hz=settings.control_hz,
        max_episode_steps=settings.max_episode_steps,
    )


def _episodes(
    env: MetaWorld, settings: CollectSettings, on_episode: OnEpisode | None, spread: Spread | None = None
) -> Iterator[Episode]:
    """Demonstrate until enough episodes succeeded, giving up when fewer than one in ten does."""
    seeds = range(settings.seed, EVALUATION_SEED)
    here = (_try(env, settings, seed) for seed in seeds)
    kept = tried = 0
    with closing(here if spread is None else spread(partial(_try_elsewhere, settings), seeds)) as episodes:
        while kept < settings.episodes:
            if tried >= 50 and kept * _WORST_ODDS < tried:
                raise BadSetting(
                    f"the expert of {settings.task!r} succeeded in {kept} of {tried} episodes; lower the "
                    f"noise (scales {settings.noise.scales}) or raise max_episode_steps "
                    f"({env.max_episode_steps})"
                )
            if tried == len(seeds):
                raise BadSetting(
                    f"seeds below {EVALUATION_SEED} are used up after {kept} episodes; lower seed"
                )
            episode = next(episodes)
            tried += 1
            kept += episode is not None
            if on_episode is not None:
                on_episode(kept, tried)
            if episode is not None:
                yield episode


def _try(env: MetaWorld, settings: CollectSettings, seed: int) -> Episode | None:
    """Run one episode; None if it fails."""
    act = expert(settings.task, env.control_hz)
    noise = ActionNoise(settings.noise, seed, env.control_hz)
    return _demonstrate(env, act, noise, seed, settings.tail_steps)


def _try_elsewhere(settings: CollectSettings, seed: int) -> Episode | None:
    """The same in another process, which keeps its world."""
    return _try(_own_env(settings), settings, seed)


@cache
def _own_env(settings: CollectSettings) -> MetaWorld:
    return _make_env(settings)


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
