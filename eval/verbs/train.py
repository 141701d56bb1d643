"""`vivace train`: a policy from demonstrations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vivace.envs.demonstrations import Demonstrations, load_demonstrations
from vivace.eval.measure.threads import restored_threads
from vivace.eval.training.fit import dp_transformer_recipe, fit
from vivace.eval.training.recipe import Recipe
from vivace.eval.training.settings import (
    CogACTOptions,
    DPTransformerOptions,
    SmolVLAOptions,
    TokenVLAOptions,
    TrainCommand,
)
from vivace.eval.training.smolvla_recipe import smolvla_recipe
from vivace.eval.training.threads import settle_threads
from vivace.eval.training.vla_recipe import vla_recipe

RECIPES: dict[type, tuple[Callable[[Demonstrations, TrainCommand], Recipe], bool]] = {
    DPTransformerOptions: (dp_transformer_recipe, False),
    CogACTOptions: (vla_recipe, True),
    TokenVLAOptions: (vla_recipe, True),
    SmolVLAOptions: (smolvla_recipe, True),
}
"""Options -> (recipe, whether it looks at images)."""


@restored_threads()
def run(command: TrainCommand) -> tuple[dict[str, Any], bool]:
    """Train on demonstrations; writes `training.pt` as it goes and `pretrained_model` at the end."""
    make_recipe, has_images = RECIPES[type(command.policy)]
    demonstrations = Demonstrations.join([load_demonstrations(Path(p), has_images) for p in command.data])
    torch.manual_seed(command.train.seed)
    recipe = make_recipe(demonstrations, command)
    recipe.policy_of(recipe.model).config.control_hz = demonstrations.control_hz
    settle_threads(recipe, command.train, command.threads)
    done = fit(recipe, command.train, Path(command.output_dir), command.half)
    return done | {"threads": torch.get_num_threads(), "frames": len(demonstrations.episode)}, True
