"""Read state dicts of the original Diffusion Policy project into `dp_transformer`.

Layout of `checkpoint["state_dicts"]["ema_model"]` (or "model") of its low-dimensional transformer policy:

    model.<name>                               the network, names as in `dp_network`
    model._dummy_variable, mask_generator.*    nothing we need
    normalizer.params_dict.{obs,action}.{scale,offset}            x_normalised = x * scale + offset
    normalizer.params_dict.{obs,action}.input_stats.{min,max,mean,std}

The number of heads is not in the weights and must be given. The project saves with dill; load such a file
with `torch.load(path, weights_only=True)` after re-saving its state dict: pickles are never opened here.

Source: real-stanford/diffusion_policy, `diffusion_transformer_lowdim_policy.py`, `normalizer.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from vivace.policies.errors import PolicyNotFound
from vivace.policies.families.dp_transformer.policy import (
    DPTransformerConfig,
    DPTransformerPolicy,
    make_dp_transformer_pre_post_processors,
)

_IGNORED = ("_dummy_variable", "mask_generator.")


def from_original(
    state: Mapping[str, Tensor], *, n_head: int, n_action_steps: int = 8, **changes: Any
) -> tuple[DPTransformerPolicy, Any, Any]:
    """Build the policy and its processors from an original state dict.

    Args:
        state: a low-dimensional transformer policy's state dict, e.g. the EMA model's.
        n_head: attention heads of the checkpoint's config.
        n_action_steps: actions executed of a chunk.
        changes: other fields of `DPTransformerConfig`, e.g. num_inference_steps.

    Returns:
        Policy, preprocessor, postprocessor.

    Raises:
        PolicyNotFound: a tensor is missing, left over, or has another shape than the network's.
    """
    network = {
        name.removeprefix("model."): value
        for name, value in state.items()
        if name.startswith("model.") and not any(part in name for part in _IGNORED)
    }
    config = _infer_config(network, n_head, n_action_steps, changes)
    policy = DPTransformerPolicy(config)
    try:
        policy.model.load_state_dict(network)
    except RuntimeError as error:
        raise PolicyNotFound(f"state dict is not a transformer Diffusion Policy's: {error}") from error
    stats = {"observation.state": _statistics(state, "obs"), "action": _statistics(state, "action")}
    return policy.eval(), *make_dp_transformer_pre_post_processors(config, stats)


def _infer_config(
    network: Mapping[str, Tensor], n_head: int, n_action_steps: int, changes: Mapping[str, Any]
) -> DPTransformerConfig:
    try:
        horizon, n_emb = network["pos_emb"].shape[1:]
        n_cond = network["cond_pos_emb"].shape[1]
        action_dim, cond_dim = network["head.weight"].shape[0], network["cond_obs_emb.weight"].shape[1]
    except KeyError as error:
        raise PolicyNotFound(
            f"state dict lacks 'model.{error.args[0]}'; the decoder form with observations is needed"
        ) from error
    layers = {name.split(".")[2] for name in network if name.startswith("decoder.layers.")}
    cond_layers = {name.split(".")[2] for name in network if name.startswith("encoder.layers.")}
    return DPTransformerConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (cond_dim,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        device="cpu",
        horizon=horizon,
        n_obs_steps=n_cond - 1,
        n_action_steps=n_action_steps,
        n_layer=len(layers),
        n_emb=n_emb,
        n_head=n_head,
        n_cond_layers=len(cond_layers),
        causal_attn="mask" in network,
        **changes,
    )


def _statistics(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Limits that give lerobot's min-max the original's scale and offset."""
    prefix = f"normalizer.params_dict.{key}"
    try:
        scale, offset = state[f"{prefix}.scale"], state[f"{prefix}.offset"]
    except KeyError as error:
        raise PolicyNotFound(f"state dict lacks the normaliser's {error.args[0]!r}") from error
    low, high = (-1 - offset) / scale, (1 - offset) / scale
    return {"min": low, "max": high, "mean": (low + high) / 2, "std": torch.ones_like(low)}
