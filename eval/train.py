"""`vivace collect` and `vivace train`: demonstrations, and a lerobot checkpoint folder learned from them."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file, save_file

from vivace.envs.demonstrations import CollectSettings, Demonstrations, load_demonstrations, record
from vivace.eval.learning_settings import (
    CogACTOptions,
    CollectCommand,
    DPTransformerOptions,
    TokenVLAOptions,
    TrainCommand,
)
from vivace.eval.recipe import Recipe, begun, statistics
from vivace.eval.terminal import progress
from vivace.eval.vla_recipe import vla_recipe
from vivace.policies.dp_transformer import (
    DPTransformerConfig,
    DPTransformerPolicy,
    make_dp_transformer_pre_post_processors,
)
from vivace.policies.train import TrainSettings, Windows, train


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


RECIPES: dict[type, tuple[Callable[[Demonstrations, TrainCommand], Recipe], bool]] = {
    DPTransformerOptions: (dp_transformer_recipe, False),
    CogACTOptions: (vla_recipe, True),
    TokenVLAOptions: (vla_recipe, True),
}
"""Options -> (recipe, whether it looks at images)."""


def save(policy: PreTrainedPolicy, pre: Any, post: Any, folder: Path, half: bool = False) -> None:
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


def run_collect(command: CollectCommand) -> tuple[dict[str, Any], bool]:
    """Demonstrate a task and store it as a LeRobotDataset."""
    options = command.collect
    settings = CollectSettings(
        task=command.env.task,
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
    make_recipe, has_images = RECIPES[type(command.policy)]
    demonstrations = Demonstrations.join([load_demonstrations(Path(p), has_images) for p in command.data])
    torch.manual_seed(command.train.seed)
    recipe = make_recipe(demonstrations, command)
    recipe.policy_of(recipe.model).config.control_hz = demonstrations.control_hz
    done = fit(recipe, command.train, Path(command.output_dir), command.half)
    return done | {"frames": len(demonstrations.episode)}, True


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
                save(recipe.policy_of(averaged), recipe.preprocess, recipe.postprocess, target, half)
    return {
        "policy": str(output_dir / "pretrained_model"),
        "steps": settings.steps,
        "loss": smooth if math.isfinite(smooth) else None,
        "wall_s": time.monotonic() - began,
    }
