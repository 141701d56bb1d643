"""Train a recipe and keep what was learned as lerobot keeps it."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file, save_file

from vivace.envs.demonstrations import Demonstrations
from vivace.eval.terminal import progress
from vivace.eval.training.recipe import Recipe, begun, statistics
from vivace.eval.training.settings import (
    TrainCommand,
)
from vivace.eval.training.trainer import TrainSettings, Windows, train
from vivace.policies.families.dp_transformer.policy import (
    DPTransformerConfig,
    DPTransformerPolicy,
    make_dp_transformer_pre_post_processors,
)
from vivace.policies.files import replacing


def dp_transformer_recipe(demonstrations: Demonstrations, command: TrainCommand) -> Recipe:
    """A transformer Diffusion Policy on low-dimensional observations."""
    state, action = demonstrations.state, demonstrations.action
    if command.start:
        policy, pre, post = begun(command.start, DPTransformerPolicy)
    else:
        config = DPTransformerConfig(
            input_features={"observation.state": PolicyFeature(FeatureType.STATE, state.shape[1:])},
            output_features={"action": PolicyFeature(FeatureType.ACTION, action.shape[1:])},
            device="cpu",
            **asdict(command.policy),
        )
        stats = {"observation.state": statistics(state), "action": statistics(action)}
        pre, post = make_dp_transformer_pre_post_processors(config, stats)
        policy = DPTransformerPolicy(config)
    normalised = pre({"observation.state": torch.from_numpy(state), "action": torch.from_numpy(action)})
    return Recipe(
        model=policy,
        policy_of=lambda model: model,
        loss=lambda model, averaged, seen, actions: model.loss(seen, actions),
        groups=policy.get_optim_params(),
        windows=Windows(
            {"observation.state": normalised["observation.state"].numpy()},
            normalised["action"].numpy(),
            demonstrations.episode,
            policy.config.n_obs_steps,
            policy.config.horizon,
        ),
        preprocess=pre,
        postprocess=post,
    )


def save(
    policy: PreTrainedPolicy,
    pre: Any,
    post: Any,
    folder: Path,
    half: bool = False,
    inside: Mapping[str, Path] | None = None,
) -> None:
    """Write config, weights, processors and copies of the folders `inside` to `folder`, all or nothing."""
    with replacing(folder) as unfinished:
        policy.save_pretrained(unfinished)
        for name, place in (inside or {}).items():
            shutil.copytree(place, unfinished / name)
        if half:
            weights = unfinished / "model.safetensors"
            save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
        pre.save_pretrained(unfinished)
        post.save_pretrained(unfinished)


def fit(recipe: Recipe, settings: TrainSettings, output_dir: Path, half: bool) -> dict[str, Any]:
    """Train; writes `training.pt` and `losses.jsonl` as it goes, `pretrained_model` now and at the end."""
    smooth, began = 0.0, time.monotonic()
    with progress() as bars:
        bar = bars.add_task("training", total=settings.steps)
        checkpoint = output_dir / "training.pt"
        for done, loss, averaged in train(
            recipe.model, recipe.loss, recipe.groups, recipe.windows, settings, checkpoint
        ):
            smooth = loss if not smooth else 0.99 * smooth + 0.01 * loss
            bars.update(bar, completed=done, description=f"training, loss {smooth:.4f}")
            if done % settings.save_every == 0:
                line = {"step": done, "loss": round(smooth, 5), "wall_s": round(time.monotonic() - began)}
                with (output_dir / "losses.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if done % (5 * settings.save_every) == 0 or done == settings.steps:
                target = output_dir / "pretrained_model"
                made = recipe.policy_of(averaged), recipe.preprocess, recipe.postprocess
                save(*made, target, half, recipe.folders)
    return {
        "policy": str(output_dir / "pretrained_model"),
        "steps": settings.steps,
        "loss": smooth if math.isfinite(smooth) else None,
        "wall_s": time.monotonic() - began,
    }
