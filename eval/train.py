"""`vivace collect` and `vivace train`: demonstrations, and a lerobot checkpoint folder learned from them."""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.torch import load_file, save_file

from vivace.envs.demonstrations import CollectSettings, Demonstrations, load_demonstrations, record
from vivace.eval.settings import CollectCommand, TrainCommand
from vivace.eval.terminal import progress
from vivace.policies.dp_transformer import (
    DPTransformerConfig,
    DPTransformerPolicy,
    make_dp_transformer_pre_post_processors,
)
from vivace.policies.train import TrainSettings, Windows, train


def statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Per-dimension statistics of (N, D) values, as lerobot stores them."""
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
    }


def train_policy(
    demonstrations: Demonstrations,
    architecture: dict[str, Any],
    settings: TrainSettings,
    output_dir: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    half: bool = False,
) -> float:
    """Train on low-dimensional demonstrations and save the averaged policy.

    Args:
        demonstrations: states, actions and the episode each step belongs to.
        architecture: fields of `DPTransformerConfig`, e.g. {"n_layer": 8, "n_emb": 256}.
        settings: how long and how fast; an interrupted run in `output_dir` continues.
        output_dir: where the checkpoint folder `pretrained_model` and `training.pt` go.
        on_step: called with (steps done, loss).
        half: store the weights as float16; they are computed with in float32 again when loaded.

    Returns:
        Wall time of this call [s].
    """
    state, action = demonstrations.state, demonstrations.action
    config = DPTransformerConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, state.shape[1:])},
        output_features={"action": PolicyFeature(FeatureType.ACTION, action.shape[1:])},
        device="cpu",
        **architecture,
    )
    stats = {"observation.state": statistics(state), "action": statistics(action)}
    pre, post = make_dp_transformer_pre_post_processors(config, stats)
    torch.manual_seed(settings.seed)
    policy = DPTransformerPolicy(config)
    normalised = pre({"observation.state": torch.from_numpy(state), "action": torch.from_numpy(action)})
    windows = Windows(
        {"observation.state": normalised["observation.state"].numpy()},
        normalised["action"].numpy(),
        demonstrations.episode,
        config.n_obs_steps,
        config.horizon,
    )
    began = time.monotonic()
    for done, loss, averaged in train(  # noqa: B007  used after the loop
        policy,
        lambda model, seen, actions: model.loss(seen, actions),
        policy.get_optim_params(),
        windows,
        settings,
        output_dir / "training.pt",
    ):
        on_step(done, loss)
    save(averaged, pre, post, output_dir / "pretrained_model", half)
    return time.monotonic() - began


def save(policy: DPTransformerPolicy, pre: Any, post: Any, folder: Path, half: bool = False) -> None:
    """Write config, weights and processors to a temporary folder, then rename it to `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.save_pretrained(partial)
    if half:
        weights = partial / "model.safetensors"
        save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    pre.save_pretrained(partial)
    post.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def join(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Put several sets of demonstrations one after the other, episodes numbered on."""
    episodes, first = [], 0
    for part in parts:
        episodes.append(part.episode + first)
        first += int(part.episode.max()) + 1
    return Demonstrations(
        np.concatenate([part.state for part in parts]),
        np.concatenate([part.action for part in parts]),
        np.concatenate(episodes),
    )


def run_collect(command: CollectCommand) -> tuple[dict[str, Any], bool]:
    """Demonstrate a task and store it as a LeRobotDataset."""
    options = command.collect
    settings = CollectSettings(
        task=command.env.task,
        env_type=command.env.type,
        episodes=options.episodes,
        seed=options.seed,
        image_size=options.image_size,
        max_episode_steps=options.max_steps,
    )
    tries = 0
    with progress() as bars:
        bar = bars.add_task(f"demonstrating {command.env.task}", total=options.episodes)

        def on_episode(kept: int, tried: int) -> None:
            nonlocal tries
            tries = tried
            bars.update(bar, completed=kept)

        record(settings, Path(command.output_dir), on_episode)
    return {"dataset": command.output_dir, "episodes": options.episodes, "tried": tries}, True


def run_train(command: TrainCommand) -> tuple[dict[str, Any], bool]:
    """Train on demonstrations; writes `training.pt` as it goes and `pretrained_model` at the end."""
    if command.threads:
        torch.set_num_threads(command.threads)
    demonstrations = join([load_demonstrations(Path(path)) for path in command.data])
    output_dir = Path(command.output_dir)
    smooth = 0.0
    with progress() as bars:
        bar = bars.add_task("training", total=command.train.steps)

        def on_step(done: int, loss: float) -> None:
            nonlocal smooth
            smooth = loss if not smooth else 0.99 * smooth + 0.01 * loss
            bars.update(bar, completed=done, description=f"training, loss {smooth:.4f}")

        wall_s = train_policy(
            demonstrations, asdict(command.policy), command.train, output_dir, on_step, command.half
        )
    return {
        "policy": str(output_dir / "pretrained_model"),
        "frames": len(demonstrations.episode),
        "steps": command.train.steps,
        "loss": smooth if math.isfinite(smooth) else None,
        "wall_s": wall_s,
    }, True
