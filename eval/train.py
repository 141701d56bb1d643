"""`vivace collect` and `vivace train`: demonstrations, and a lerobot checkpoint folder learned from them."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vivace.envs.demonstrations import CollectSettings, Demonstrations, load_demonstrations, record
from vivace.eval.settings import (
    CogACTOptions,
    CollectCommand,
    DPTransformerOptions,
    TokenVLAOptions,
    TrainCommand,
    VLAOptions,
)
from vivace.eval.terminal import progress
from vivace.policies.cogact import CogACTConfig, CogACTPolicy
from vivace.policies.dp_transformer import (
    DPTransformerConfig,
    DPTransformerPolicy,
    make_dp_transformer_pre_post_processors,
)
from vivace.policies.errors import BadSetting
from vivace.policies.load import load_policy
from vivace.policies.prompt import PromptStep, train_tokenizer
from vivace.policies.token_vla import TokenVLAConfig, TokenVLAPolicy
from vivace.policies.train import Batches, TrainSettings, Windows, train
from vivace.policies.vla import VisionLanguage, make_vla_processors


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything training needs to know of one kind of policy."""

    model: nn.Module
    """What is optimised; the policy, or something around it."""
    policy_of: Callable[[Any], Any]
    """From `model` to the policy that is saved."""
    loss: Callable[[Any, Any, dict[str, Tensor], Tensor], Tensor]
    """(model, its running average, observations, actions) -> scalar."""
    groups: list[dict[str, Any]]
    """The optimiser's parameter groups."""
    windows: Batches
    preprocess: Any
    postprocess: Any


def dp_transformer_recipe(demonstrations: Demonstrations, command: TrainCommand) -> Recipe:
    """A transformer Diffusion Policy on low-dimensional observations."""
    state, action = demonstrations.state, demonstrations.action
    if command.start:
        policy, pre, post = _begun(command.start, DPTransformerPolicy)
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


class Grounded(nn.Module):
    """A VLA, and a linear read-out of the simulator's state from the stream of its prompt's last token.

    The read-out makes the vision side learn where things are sooner; it is thrown away after training.
    """

    def __init__(self, policy: CogACTPolicy | TokenVLAPolicy, state_dim: int, weight: float):
        super().__init__()
        self.policy = policy
        self.read_out = nn.Linear(policy.config.language_width, state_dim)
        self.weight = weight

    def loss(self, seen: dict[str, Tensor], actions: Tensor) -> Tensor:
        """Loss of the policy plus that of the read-out; images (B, 1, 3, H, W) are uint8."""
        batch = present(self.policy, seen)
        state = batch.pop("observation.state")
        loss, z = self.policy.loss(batch, actions)
        return loss + self.weight * F.mse_loss(self.read_out(z), state)


def present(policy: Any, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Observations of one moment {key: (B, ...)}, images in [0, 1], of windows {key: (B, 1, ...)}."""
    batch = {key: value[:, 0] for key, value in seen.items()}
    return batch | {key: batch[key].float() / 255 for key in policy.config.image_features}


TRAINING_FIELDS = ("layer_drop", "patch_drop", "repeated_diffusion_steps")
"""Config fields that matter in training only: the options' count, also when a checkpoint is gone on from."""


def vla_recipe(demonstrations: Demonstrations, command: TrainCommand) -> Recipe:
    """A miniature VLA on images and instructions."""
    options = cast(VLAOptions, command.policy)
    policy, pre, post = (
        _begun(command.start, _VLAS[type(options)][1])
        if command.start
        else _new_vla(demonstrations, options, command.backbone)
    )
    for name in TRAINING_FIELDS:
        if hasattr(options, name):
            setattr(policy.config, name, getattr(options, name))
    model = Grounded(policy, demonstrations.state.shape[1], command.state_weight)
    return Recipe(
        model=model,
        policy_of=lambda model: model.policy,
        loss=lambda model, averaged, seen, actions: model.loss(seen, actions),
        groups=[*model.policy.get_optim_params(), {"params": list(model.read_out.parameters())}],
        windows=demonstrated(demonstrations, policy, pre),
        preprocess=pre,
        postprocess=post,
    )


def demonstrated(demonstrations: Demonstrations, policy: Any, preprocess: Any) -> Windows:
    """Every moment of the demonstrations: images, the prompt's tokens, standardised state; the actions."""
    texts = list(demonstrations.instructions)
    features = policy.config.image_features
    images = {key: torch.zeros(len(texts), *feature.shape) for key, feature in features.items()}
    ready = preprocess(images | {"task": texts})
    tokens = {k: v.numpy() for k, v in ready.items() if k.startswith("observation.language")}
    scale = demonstrations.state.std(0)
    state = (demonstrations.state - demonstrations.state.mean(0)) / np.where(scale > 1e-4, scale, 1.0)
    action = torch.from_numpy(demonstrations.action)
    return Windows(
        {
            **demonstrations.images,
            **{key: value[demonstrations.task] for key, value in tokens.items()},
            "observation.state": state.astype(np.float32),
        },
        preprocess({"action": action, "task": texts[:1], **images})["action"].numpy(),
        demonstrations.episode,
        1,
        policy.config.horizon,
    )


def _new_vla(
    demonstrations: Demonstrations, options: VLAOptions, backbone: str | None
) -> tuple[Any, Any, Any]:
    """A miniature with its processors: weights are random but for those of a backbone, if there is one.

    Without a backbone the tokenizer is trained on the instructions.
    """
    action, texts = demonstrations.action, list(demonstrations.instructions)
    begun = load_policy(backbone) if backbone else None
    tokenizer = tokenizer_of(begun.preprocess) if begun else train_tokenizer(texts)
    vit = {
        "patch_size": options.patch_size,
        "depth": options.vision_layers,
        "embed_dim": options.vision_width,
        "num_heads": options.vision_heads,
    }
    taken = ("patch_size", "vision_layers", "vision_width", "vision_heads")
    prompt = PromptStep(suffix=(2,), tokenizer=tokenizer, max_tokens=1000)
    vocabulary = tokenizer.get_vocab_size()
    settings: dict[str, Any] = {key: value for key, value in asdict(options).items() if key not in taken}
    if isinstance(options, TokenVLAOptions):
        vocabulary += options.n_action_bins
        settings["vocabulary_end"] = vocabulary
    else:
        settings["action_head"] = "custom"
    config_class, policy_class = _VLAS[type(options)]
    config = config_class(
        input_features={
            key: PolicyFeature(FeatureType.VISUAL, images.shape[1:])
            for key, images in demonstrations.images.items()
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, action.shape[1:])},
        device="cpu",
        dino_options=vit,
        siglip_options=vit,
        language_kv_heads=options.language_heads,
        language_vocabulary=vocabulary,
        max_tokens=max(len(prompt.encode(text)) for text in texts) + 4,
        prompt_suffix=(2,),
        pad_token=0,
        **settings,
    )
    policy = policy_class(config)
    if begun:
        _take_backbone(policy, begun.policy)
    return policy, *make_vla_processors(config, {"action": statistics(action)}, tokenizer)


def tokenizer_of(preprocess: Any) -> Any:
    """Return the tokenizer of a VLA's preprocessor."""
    return next(step.tokenizer for step in preprocess.steps if isinstance(step, PromptStep))


@torch.no_grad()
def _take_backbone(policy: Any, other: Any) -> None:
    """Copy vision, projector and language model; embeddings of tokens the other lacks stay as they are."""
    if not isinstance(other, VisionLanguage):
        raise BadSetting(f"--backbone holds a policy of type {other.config.type!r}; a VLA is needed")
    mine, theirs = policy.state_dict(), other.state_dict()
    parts = ("vision_backbone.", "projector.", "language.")
    for name in (name for name in mine if name.startswith(parts)):
        found, into = theirs.get(name), mine[name]
        if name == "language.embed_tokens.weight" and found is not None:
            into, found = into[: len(found)], found[: len(into)]
        if found is None or found.shape != into.shape:
            shape = None if found is None else tuple(found.shape)
            raise BadSetting(
                f"--backbone has {name} of shape {shape}, this policy needs {tuple(into.shape)}; "
                "give the same sizes"
            )
        into.copy_(found)


def _begun[Policy](path: str, kind: type[Policy]) -> tuple[Policy, Any, Any]:
    """A trained policy to go on from, with its processors."""
    loaded = load_policy(path)
    if not isinstance(loaded.policy, kind):
        raise BadSetting(
            f"{path} holds a policy of type {loaded.policy.config.type!r}, --policy.type asks for "
            f"{getattr(kind, 'name', kind.__name__)!r}; give the type of the checkpoint"
        )
    return loaded.policy, loaded.preprocess, loaded.postprocess


_VLAS: dict[type, tuple[Any, Any]] = {
    CogACTOptions: (CogACTConfig, CogACTPolicy),
    TokenVLAOptions: (TokenVLAConfig, TokenVLAPolicy),
}
"""Options -> config and policy."""

RECIPES: dict[type, tuple[Callable[[Demonstrations, TrainCommand], Recipe], bool]] = {
    DPTransformerOptions: (dp_transformer_recipe, False),
    CogACTOptions: (vla_recipe, True),
    TokenVLAOptions: (vla_recipe, True),
}
"""Options -> (recipe, whether it looks at images)."""


def statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Per-dimension statistics of (N, D) values, as lerobot stores them."""
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
        "count": np.array([len(values)]),
    }


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
