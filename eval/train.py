"""Train a `dp_transformer` on demonstrations and write a lerobot checkpoint folder."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

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
    demonstrations: dict[str, np.ndarray],
    architecture: dict[str, object],
    settings: TrainSettings,
    output_dir: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train on low-dimensional demonstrations and save the averaged policy.

    Args:
        demonstrations: "state" (N, D), "action" (N, A), "episode" (N,).
        architecture: fields of `DPTransformerConfig`, e.g. {"n_layer": 8, "n_emb": 256}.
        settings: how long and how fast; an interrupted run in `output_dir` continues.
        output_dir: where the checkpoint folder `pretrained_model` and `training.pt` go.
        on_step: called with (steps done, loss).

    Returns:
        Wall time of this call [s].
    """
    state, action = demonstrations["state"], demonstrations["action"]
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
        demonstrations["episode"],
        config.n_obs_steps,
        config.horizon,
    )
    began = time.monotonic()
    averaged = policy
    for done, loss, averaged in train(
        policy,
        DPTransformerPolicy.loss,
        policy.get_optim_params(),
        windows,
        settings,
        output_dir / "training.pt",
    ):
        on_step(done, loss)
    save(averaged, pre, post, output_dir / "pretrained_model")
    return time.monotonic() - began


def save(policy: DPTransformerPolicy, pre, post, folder: Path) -> None:
    """Write config, weights and processors to a temporary folder, then rename it to `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.save_pretrained(partial)
    pre.save_pretrained(partial)
    post.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
