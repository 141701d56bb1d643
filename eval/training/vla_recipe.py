"""Vision-language-action policies in miniature: made, begun from another, and taught by demonstrations."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vivace.envs.demonstrations import Demonstrations
from vivace.eval.terminal import progress
from vivace.eval.training.recipe import Recipe, begun, statistics
from vivace.eval.training.settings import CogACTOptions, TokenVLAOptions, TrainCommand, VLAOptions
from vivace.eval.training.trainer import Windows
from vivace.policies.errors import BadSetting
from vivace.policies.families.cogact.policy import CogACTConfig, CogACTPolicy
from vivace.policies.families.token_vla.policy import TokenVLAConfig, TokenVLAPolicy
from vivace.policies.files import replacing
from vivace.policies.language.smollm2 import llama_settings, load_smollm2
from vivace.policies.language.tokenize import PromptStep, train_tokenizer
from vivace.policies.load import load_policy
from vivace.policies.vla.vla import VisionLanguage, make_vla_processors


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


BACKBONE = ("vision_backbone.", "projector.", "language.")
"""Prefixes of the weights that do not depend on how a policy acts."""


def vla_recipe(demonstrations: Demonstrations, command: TrainCommand) -> Recipe:
    """A miniature VLA on images and instructions."""
    options = cast(VLAOptions, command.policy)
    policy, pre, post = (
        begun(command.start, _VLAS[type(options)].policy)
        if command.start
        else _new_vla(demonstrations, options, command.backbone)
    )
    for name in options.TRAINING:
        setattr(policy.config, name, getattr(options, name))
    windows = demonstrated(demonstrations, policy, pre)
    if command.head_only:
        return _head_recipe(policy, pre, post, windows, command)
    model = Grounded(policy, demonstrations.state.shape[1], command.state_weight)
    return Recipe(
        model=model,
        policy_of=lambda model: model.policy,
        loss=lambda model, averaged, seen, actions: model.loss(seen, actions),
        groups=[*model.policy.get_optim_params(), {"params": list(model.read_out.parameters())}],
        windows=windows,
        preprocess=pre,
        postprocess=post,
    )


class Features:
    """Cognition features of some moments, computed once, and the actions that belong to them."""

    def __init__(self, features: Tensor, actions: Tensor):
        self._features, self._actions = features, actions

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """{"cognition": (B, D)} and actions (B, H, A)."""
        return {"cognition": self._features[rows]}, self._actions[rows]


def _head_recipe(policy: Any, pre: Any, post: Any, windows: Windows, command: TrainCommand) -> Recipe:
    """The action head alone; everything before it stays as it is."""
    if not isinstance(policy, CogACTPolicy):
        raise BadSetting(f"--head_only trains an action head, policy {policy.config.type!r} has none")

    def policy_of(head: Any) -> CogACTPolicy:
        policy.action_model.load_state_dict(head.state_dict())
        return policy

    head = copy.deepcopy(policy.action_model)
    return Recipe(
        model=head,
        policy_of=policy_of,
        loss=lambda head, averaged, seen, actions: policy.action_loss(seen["cognition"], actions, head),
        groups=[{"params": list(head.parameters())}],
        windows=_features(policy, windows, command),
        preprocess=pre,
        postprocess=post,
    )


@torch.inference_mode()
def _features(policy: CogACTPolicy, windows: Windows, command: TrainCommand) -> Features:
    """Compute the features of evenly spread moments, or read them if an interrupted run has."""
    rows = torch.linspace(0, len(windows) - 1, min(command.head_only, len(windows))).long()
    file = Path(command.output_dir) / "features.safetensors"
    if file.is_file():
        known = load_file(file)
        if torch.equal(known["rows"], rows):
            return Features(known["features"], known["actions"])
    features, actions = [], []
    policy.eval()
    with progress() as bars:
        bar = bars.add_task("computing features", total=len(rows))
        for some in rows.split(16):
            seen, action = windows.batch(some)
            features.append(policy.cognition(present(policy, seen)))
            actions.append(action)
            bars.advance(bar, len(some))
    found = {"rows": rows, "features": torch.cat(features), "actions": torch.cat(actions)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        save_file(found, path)
    return Features(found["features"].clone(), found["actions"].clone())


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
    other = load_policy(backbone) if backbone else None
    pretrained = _pretrained(options)
    if pretrained:
        language, tokenizer, words = pretrained
    else:
        tokenizer = tokenizer_of(other.preprocess) if other else train_tokenizer(texts)
        words = {"bos_token": 1, "pad_token": 0, "prompt_suffix": (2,)}
    vit = {
        "patch_size": options.patch_size,
        "depth": options.vision_layers,
        "embed_dim": options.vision_width,
        "num_heads": options.vision_heads,
    }
    taken = ("patch_size", "vision_layers", "vision_width", "vision_heads", "language_model")
    settings: dict[str, Any] = {key: value for key, value in asdict(options).items() if key not in taken}
    settings |= {"language_kv_heads": options.language_heads, **options.acting(tokenizer.get_vocab_size())}
    if pretrained:
        settings |= llama_settings(language)
    prompt = PromptStep(suffix=words["prompt_suffix"], tokenizer=tokenizer, max_tokens=1000)
    kind = _VLAS[type(options)]
    config = kind.config(
        input_features={
            key: PolicyFeature(FeatureType.VISUAL, images.shape[1:])
            for key, images in demonstrations.images.items()
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, action.shape[1:])},
        device="cpu",
        dino_options=vit,
        siglip_options=vit,
        max_tokens=max(len(prompt.encode(text)) for text in texts) + 4,
        **words,
        **settings,
    )
    policy = kind.policy(config)
    kind.begin(policy)
    if pretrained:
        policy.language.load_state_dict(language.state_dict())
    if other:
        _take_backbone(policy, other.policy, ("vision_backbone.",) if pretrained else BACKBONE)
    return policy, *make_vla_processors(config, {"action": statistics(action)}, tokenizer)


@torch.no_grad()
def _order_action_tokens(policy: TokenVLAPolicy) -> None:
    """Begin with neighbouring bins alike, both where they are read and where they are written.

    A row's entries are cosines and sines of its bin's value, at the scale of the random rows they replace.
    """
    bins = policy.config.bins
    ids = torch.arange(bins.first, bins.end)
    angles = bins.decode(ids)[:, None] * torch.logspace(0, 2, policy.config.language_width // 2)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1) * 2**0.5
    for weight in (policy.language.embed_tokens.weight, policy.lm_head.weight):
        weight[ids] = waves[:, : weight.shape[1]] * weight[ids].std()


@dataclass(frozen=True)
class _Kind:
    """One kind of VLA."""

    config: Any
    policy: Any
    begin: Callable[[Any], None] = lambda policy: None
    """Prepares random weights."""


_VLAS: dict[type, _Kind] = {
    CogACTOptions: _Kind(CogACTConfig, CogACTPolicy),
    TokenVLAOptions: _Kind(TokenVLAConfig, TokenVLAPolicy, _order_action_tokens),
}
"""Options -> what they make."""


def _pretrained(options: VLAOptions) -> tuple[Any, Any, dict[str, Any]] | None:
    """Language model, tokenizer, and config fields of its special tokens; None if none is asked for."""
    name = options.pretrained
    if not name:
        return None
    if name != "smollm2":
        raise BadSetting(f"policy.language_model={name!r} is unknown; known: smollm2")
    model, tokenizer = load_smollm2()
    end = tokenizer.eos_token_id
    words = {"bos_token": tokenizer.bos_token_id, "pad_token": end, "prompt_suffix": (end,)}
    return model, tokenizer.backend_tokenizer, words


def tokenizer_of(preprocess: Any) -> Any:
    """Return the tokenizer of a VLA's preprocessor."""
    return next(step.tokenizer for step in preprocess.steps if isinstance(step, PromptStep))


@torch.no_grad()
def _take_backbone(policy: Any, other: Any, parts: tuple[str, ...]) -> None:
    """Copy parts of another VLA; embeddings of tokens the other lacks stay as they are."""
    if not isinstance(other, VisionLanguage):
        raise BadSetting(f"--backbone holds a policy of type {other.config.type!r}; a VLA is needed")
    mine, theirs = policy.state_dict(), other.state_dict()
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
