"""lerobot's SmolVLA in miniature: made, begun from another VLA, and taught by demonstrations.

The loss is lerobot's flow matching (`VLAFlowMatching.forward`), but for one thing: every demonstrated moment
is learned with several noises at once. The prefix does not see the actions, so it is read once for all.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import TokenizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn

from vivace.envs.demonstrations import Demonstrations
from vivace.eval.training.recipe import Recipe, begun, statistics
from vivace.eval.training.settings import SmolVLAOptions, TrainCommand
from vivace.eval.training.smolvlm import VLM, backbone, take_backbone, write_smolvlm
from vivace.eval.training.trainer import Windows
from vivace.eval.training.vla_recipe import present, tokenizer_of
from vivace.policies.checkpoint.find import resolve
from vivace.policies.errors import BadSetting
from vivace.policies.language.tokenize import train_tokenizer

_BLIND = 1e9
"""Standard deviation of what a policy is not to see: it is divided by it."""


class Flow(nn.Module):
    """A SmolVLA and its loss."""

    def __init__(self, policy: SmolVLAPolicy, noises: int):
        super().__init__()
        self.policy = policy
        self.noises = noises

    def loss(self, seen: dict[str, Tensor], actions: Tensor) -> Tensor:
        """Return the loss of actions (B, H, A); images (B, 1, 3, H, W) are uint8, state (B, 1, D)."""
        return flow_loss(self.policy, present(self.policy, seen), actions, self.noises)


def flow_loss(
    policy: SmolVLAPolicy,
    batch: dict[str, Tensor],
    actions: Tensor,
    noises: int = 1,
    noise: Tensor | None = None,
    time: Tensor | None = None,
) -> Tensor:
    """Mean of || v(x_t, t) - (noise - a) ||^2 over B x `noises` draws, x_t = t noise + (1 - t) a.

    Args:
        policy: the network.
        batch: images in [0, 1], normalised state, the prompt's tokens.
        actions: normalised (B, H, A).
        noises: draws of noise and time for each row.
        noise: (B x noises, H, max_action_dim), rows of one moment together; drawn when None.
        time: (B x noises,) in (0, 1]; drawn as lerobot does when None.
    """
    model, n = policy.model, actions.shape[-1]
    images, cameras = policy.prepare_images(batch)
    state, actions = policy.prepare_state(batch), policy.prepare_action({ACTION: actions})
    text, is_text = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
    prefix, is_there, attends = model.embed_prefix(images, cameras, text, is_text, state=state)
    _, past = model.vlm_with_expert.forward(
        attention_mask=make_att_2d_masks(is_there, attends),
        position_ids=torch.cumsum(is_there, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[prefix, None],
        use_cache=True,
    )
    past.batch_repeat_interleave(noises)
    is_there, actions = is_there.repeat_interleave(noises, 0), actions.repeat_interleave(noises, 0)
    noise = model.sample_noise(actions.shape, actions.device) if noise is None else noise
    time = model.sample_time(len(actions), actions.device) if time is None else time
    at = time[:, None, None]
    velocity = model.denoise_step(is_there, past, at * noise + (1 - at) * actions, time)
    return F.mse_loss(velocity[..., :n], (noise - actions)[..., :n])


def smolvla_recipe(demonstrations: Demonstrations, command: TrainCommand) -> Recipe:
    """A miniature SmolVLA on images, a few numbers of the state, and instructions."""
    if command.head_only:
        raise BadSetting("--head_only trains an action head, policy 'smolvla' has none apart")
    options = cast(SmolVLAOptions, command.policy)
    if command.start:
        policy, pre, post = begun(command.start, SmolVLAPolicy)
        vlm = resolve(command.start) / VLM
    else:
        vlm = Path(command.output_dir) / VLM
        policy, pre, post = _new(demonstrations, options, command.backbone, vlm)
    policy.requires_grad_(True)  # lerobot freezes what it expects to be pretrained
    model = Flow(policy, options.noises)
    return Recipe(
        model=model,
        policy_of=lambda model: model.policy,
        loss=lambda model, averaged, seen, actions: model.loss(seen, actions),
        groups=_groups(policy),
        windows=_windows(demonstrations, policy, pre),
        preprocess=pre,
        postprocess=post,
        folders={VLM: vlm},
    )


def _groups(policy: SmolVLAPolicy) -> list[dict[str, Any]]:
    """All parameters, without weight decay, which lerobot has next to none of either."""
    return [{"params": list(policy.parameters()), "weight_decay": policy.config.optimizer_weight_decay}]


def _windows(demonstrations: Demonstrations, policy: SmolVLAPolicy, preprocess: Any) -> Windows:
    """Every moment of the demonstrations: images, the prompt's tokens, state; and its actions."""
    texts, features = list(demonstrations.instructions), policy.config.image_features
    images = {key: torch.zeros(len(texts), *feature.shape) for key, feature in features.items()}
    some = {OBS_STATE: torch.zeros(len(texts), demonstrations.state.shape[1])}
    ready = preprocess(images | some | {"task": texts})
    tokens = {key: ready[key].numpy() for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)}
    whole = {
        OBS_STATE: torch.from_numpy(demonstrations.state),
        ACTION: torch.from_numpy(demonstrations.action),
    }
    normalised = preprocess(whole | {"task": texts[:1]})
    return Windows(
        {
            **demonstrations.images,
            **{key: value[demonstrations.task] for key, value in tokens.items()},
            OBS_STATE: normalised[OBS_STATE].numpy(),
        },
        normalised[ACTION].numpy(),
        demonstrations.episode,
        1,
        policy.config.chunk_size,
    )


def _new(
    demonstrations: Demonstrations, options: SmolVLAOptions, begin: str | None, vlm: Path
) -> tuple[Any, Any, Any]:
    """A miniature with its processors, and in the folder `vlm` what lerobot builds its VLM of."""
    state, action = demonstrations.state, demonstrations.action
    texts = list(demonstrations.instructions)
    other = backbone(begin) if begin else None
    tokenizer = (
        tokenizer_of(other.preprocess) if other else train_tokenizer(texts, template="{instruction}\n")
    )
    longest = write_smolvlm(vlm, options, tokenizer, [f"{text}\n" for text in texts])
    edge = options.image_size
    config = SmolVLAConfig(
        input_features={
            key: PolicyFeature(FeatureType.VISUAL, images.shape[1:])
            for key, images in demonstrations.images.items()
        }
        | {OBS_STATE: PolicyFeature(FeatureType.STATE, state.shape[1:])},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, action.shape[1:])},
        device="cpu",
        vlm_model_name=str(vlm),
        resize_imgs_with_padding=(edge, edge),
        num_vlm_layers=options.language_layers,
        expert_width_multiplier=options.expert_width,
        max_state_dim=state.shape[1],
        max_action_dim=action.shape[1],
        tokenizer_max_length=longest + 4,
        pad_language_to="max_length",
        chunk_size=options.horizon,
        n_action_steps=options.n_action_steps,
        num_steps=options.num_steps,
        freeze_vision_encoder=False,
        train_expert_only=False,
        push_to_hub=False,
    )
    policy = SmolVLAPolicy(config)
    pre, post = make_smolvla_pre_post_processors(config, _statistics(state, action, options.state_size))
    config.vlm_model_name = f"./{VLM}"
    next(it for it in pre.steps if isinstance(it, TokenizerProcessorStep)).tokenizer_name = f"./{VLM}"
    if other:
        take_backbone(policy, other.policy, demonstrations)
    return policy, pre, post


def _statistics(state: np.ndarray, action: np.ndarray, shown: int) -> dict[str, Any]:
    """Statistics of actions, and of states: those that blind a policy to what comes after the first ones."""
    is_hidden = np.arange(state.shape[1]) >= shown
    mean = np.where(is_hidden, 0.0, state.mean(0))
    std = np.where(is_hidden, _BLIND, state.std(0))
    return {OBS_STATE: {"mean": mean, "std": std}, ACTION: statistics(action)}
