"""Read checkpoints of the original Diffusion Policy project into `dp_transformer`.

    RUN.ckpt, or RUN/checkpoints/latest.ckpt        see `payload`

The state dict of the EMA model, or of the model where none was kept, of its transformer policies:

    model.<name>                               the network, names as in `network`
    obs_encoder.obs_nets.<camera>.*            robomimic's ResNet-18 with spatial softmax, as lerobot's
    *_dummy_variable, mask_generator.*         nothing we need
    normalizer.params_dict.<key>.{scale,offset}                   x_normalised = x * scale + offset
    normalizer.params_dict.<key>.input_stats.{min,max,mean,std}

`<key>` is "action", and "obs" or, with cameras, each observation. What is felt becomes one
`observation.state`, in the order of the settings' `shape_meta`; the network reads it after the pictures.

Source: real-stanford/diffusion_policy, `diffusion_transformer_{lowdim,hybrid_image}_policy.py`,
`normalizer.py`; ARISE-Initiative/robomimic 0.2, `obs_nets.py`, `base_nets.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from vivace.policies.errors import BadSetting, PolicyNotFound, in_one_line
from vivace.policies.families.dp_transformer.payload import read_payload
from vivace.policies.families.dp_transformer.policy import (
    DPTransformerConfig,
    DPTransformerPolicy,
    make_dp_transformer_pre_post_processors,
)
from vivace.policies.families.originals import Original

_LOW_DIM, _HYBRID = "DiffusionTransformerLowdimPolicy", "DiffusionTransformerHybridImagePolicy"
_IGNORED = ("_dummy_variable", "mask_generator.")
_SCHEDULER = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "clip_sample",
    "prediction_type",
)
_USUAL = {"variance_type": "fixed_small", "set_alpha_to_one": True, "steps_offset": 0, "thresholding": False}
"""Settings of the noise schedule that ours does not have, as they have to be."""
_DEFAULTS = {"crop_shape": (76, 76), "obs_encoder_group_norm": False, "n_head": 4}
"""Of the policy with cameras."""
_ENCODER = {"backbone.nets.": "backbone.", "pool.nets.": "pool.nets.", "nets.3.": "out."}
"""robomimic's encoder of one camera -> lerobot's."""
_STATE, _PICTURES = "observation.state", "observation.images."


def find(run: Path) -> Path | None:
    """The checkpoint that a path is or, of a training run's folder, the latest; None if there is none."""
    if run.suffix == ".ckpt":
        return run
    found = [run / "checkpoints" / "latest.ckpt", run / "latest.ckpt", *sorted(run.glob("*.ckpt"))]
    return next((file for file in found if file.is_file()), None)


def read(run: Path, unnorm_key: str | None, architecture: Mapping[str, Any] | None = None) -> Original:
    """Read a checkpoint, or a training run's latest; see `families.convert`."""
    if unnorm_key or architecture:
        raise BadSetting(
            "unnorm_key and horizon are of other projects; Diffusion Policy's checkpoints say both"
        )
    file = find(run)
    if file is None or not file.is_file():
        raise PolicyNotFound(f"there is no checkpoint at {run}")
    settings, states = read_payload(file)
    wanted = "ema_model" if settings.get("training", {}).get("use_ema", "ema_model" in states) else "model"
    if wanted not in states:
        raise PolicyNotFound(f"{file} lacks state_dicts.{wanted}; it has {', '.join(states)}")
    described = _policy(settings, file)
    policy, statistics = _build(states[wanted], described, _scheduler(described, file))
    return Original(policy.config, policy.state_dict(), statistics)


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
    described = {"model": {"n_head": n_head}, "n_action_steps": n_action_steps}
    policy, statistics = _build(state, described, changes)
    return policy.eval(), *make_dp_transformer_pre_post_processors(policy.config, statistics)


def _policy(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The policy's part of the settings, if it is one that can be read."""
    described = settings.get("policy", {})
    name = str(described.get("_target_", "")).rpartition(".")[2]
    if name not in (_LOW_DIM, _HYBRID):
        raise PolicyNotFound(
            f"{file} holds a {name or 'policy without a name'}; read are {_LOW_DIM}, {_HYBRID}"
        )
    network = described.get("model", described)
    wanted = {"obs_as_cond": True, "time_as_cond": True, "pred_action_steps_only": False}
    for key, value in wanted.items():
        found = network.get(key, described.get(key, value))
        if found is not value:
            raise PolicyNotFound(f"{file} has a policy of {key}={found}; read are those of {value}")
    return (_DEFAULTS if name == _HYBRID else {}) | dict(described)


def _scheduler(described: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Fields of `DPTransformerConfig` that say how the policy denoises."""
    found = described.get("noise_scheduler", {})
    for key, value in _USUAL.items():
        if found.get(key, value) != value:
            raise PolicyNotFound(f"{file} has a noise schedule of {key}={found[key]!r}; read is {value!r}")
    kind = str(found.get("_target_", "")).rpartition(".")[2].removesuffix("Scheduler")
    if kind not in ("DDPM", "DDIM"):
        raise PolicyNotFound(f"{file} has the noise schedule {kind!r}; read are DDPM and DDIM")
    said = {key: found[key] for key in _SCHEDULER if key in found}
    return said | {"noise_scheduler_type": kind, "num_inference_steps": described.get("num_inference_steps")}


def _build(
    state: Mapping[str, Tensor], described: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[DPTransformerPolicy, dict[str, dict[str, Tensor]]]:
    """A policy with the original's weights, and its statistics by feature."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    seen = described.get("shape_meta", {}).get("obs", {"obs": {}})
    cameras = [key for key, it in seen.items() if it.get("type") == "rgb"]
    felt = [key for key in seen if key not in cameras]
    statistics = {"action": _limits(state, ["action"])}
    if felt:
        statistics[_STATE] = _limits(state, felt, [seen[key].get("shape", (None,))[0] for key in felt])
    for key in cameras:
        statistics[_PICTURES + key] = _brightness(state, key)
    network = {
        name: value
        for name, value in state.items()
        if name.startswith("model.") and not any(part in name for part in _IGNORED)
    }
    inputs = {_STATE: PolicyFeature(FeatureType.STATE, statistics[_STATE]["min"].shape)} if felt else {}
    for key in cameras:
        inputs[_PICTURES + key] = PolicyFeature(FeatureType.VISUAL, tuple(seen[key]["shape"]))
    config = _config(network, inputs, described, changes)
    weights = dict(network)
    for i, key in enumerate(cameras):
        weights |= _encoder(state, key, i)
    if cameras:
        weights["model.cond_obs_emb.weight"] = _pictures_first(network, seen, cameras)
    return _with(DPTransformerPolicy(config), weights), statistics


def _with(policy: DPTransformerPolicy, weights: Mapping[str, Tensor]) -> DPTransformerPolicy:
    """Load weights; where lerobot's spatial softmax looks is no weight of the original's."""
    grids = {name: value for name, value in policy.state_dict().items() if name.endswith(".pool.pos_grid")}
    try:
        policy.load_state_dict({**weights, **grids})
    except RuntimeError as error:
        raise PolicyNotFound(
            f"state dict is not a transformer Diffusion Policy's: {in_one_line(error)}"
        ) from error
    return policy


def _config(
    network: Mapping[str, Tensor],
    inputs: dict[str, PolicyFeature],
    described: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> DPTransformerConfig:
    try:
        horizon, n_emb = network["model.pos_emb"].shape[1:]
        n_cond = network["model.cond_pos_emb"].shape[1]
        action_dim = network["model.head.weight"].shape[0]
        n_head = described.get("model", described)["n_head"]
    except KeyError as error:
        raise PolicyNotFound(
            f"state dict lacks '{error.args[0]}'; the decoder form with observations is needed"
        ) from error
    layers = {name.split(".")[3] for name in network if name.startswith("model.decoder.layers.")}
    cond_layers = {name.split(".")[3] for name in network if name.startswith("model.encoder.layers.")}
    crop = described.get("crop_shape")
    try:
        return DPTransformerConfig(
            input_features=inputs,
            output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
            device="cpu",
            horizon=horizon,
            n_obs_steps=n_cond - 1,
            n_action_steps=described.get("n_action_steps", 8),
            n_layer=len(layers),
            n_emb=n_emb,
            n_head=n_head,
            n_cond_layers=len(cond_layers),
            causal_attn="model.mask" in network,
            use_group_norm=described.get("obs_encoder_group_norm", True),
            crop_shape=tuple(crop) if crop else None,
            **changes,
        )
    except (TypeError, ValueError) as error:
        raise PolicyNotFound(f"the checkpoint's settings make no policy: {in_one_line(error)}") from error


def _encoder(state: Mapping[str, Tensor], camera: str, i: int) -> dict[str, Tensor]:
    """One camera's encoder under lerobot's names."""
    prefix = f"obs_encoder.obs_nets.{camera}."
    found = {}
    for name, value in state.items():
        for theirs, ours in _ENCODER.items():
            if name.startswith(prefix + theirs):
                found[f"rgb_encoders.{i}.{ours}{name.removeprefix(prefix + theirs)}"] = value
    if not found:
        raise PolicyNotFound(
            f"state dict has no {prefix}*; read is an encoder for each camera, none that is shared"
        )
    return found


def _pictures_first(network: Mapping[str, Tensor], seen: Mapping[str, Any], cameras: list[str]) -> Tensor:
    """The embedding of observations, its columns in the order in which `DPTransformerPolicy` has them."""
    weight = network["model.cond_obs_emb.weight"]
    felt = sum(it["shape"][0] for key, it in seen.items() if key not in cameras)
    width = (weight.shape[1] - felt) // len(cameras)
    sizes = [width if key in cameras else it["shape"][0] for key, it in seen.items()]
    parts = dict(zip(seen, weight.split(sizes, dim=1), strict=True))
    return torch.cat(
        [*(parts[key] for key in cameras), *(p for k, p in parts.items() if k not in cameras)], 1
    )


def _linear(state: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of one normaliser."""
    prefix = f"normalizer.params_dict.{key}"
    try:
        return state[f"{prefix}.scale"].float(), state[f"{prefix}.offset"].float()
    except KeyError as error:
        raise PolicyNotFound(f"state dict lacks the normaliser's {error.args[0]!r}") from error


def _limits(
    state: Mapping[str, Tensor], keys: list[str], sizes: list[int | None] | None = None
) -> dict[str, Tensor]:
    """Limits, of several things in a row, that give lerobot's min-max the original's scale and offset."""
    lows, highs = [], []
    for key, size in zip(keys, sizes or [None] * len(keys), strict=True):
        scale, offset = _linear(state, key)
        if size is not None and scale.numel() == 1:
            scale, offset = scale.expand(size), offset.expand(size)
        lows.append((-1 - offset) / scale)
        highs.append((1 - offset) / scale)
    low, high = torch.cat(lows), torch.cat(highs)
    return {"min": low, "max": high, "mean": (low + high) / 2, "std": torch.ones_like(low)}


def _brightness(state: Mapping[str, Tensor], camera: str) -> dict[str, Tensor]:
    """Mean and deviation of a picture's channels that give lerobot's the original's scale and offset."""
    scale, offset = (value.expand(3).reshape(3, 1, 1) for value in _linear(state, camera))
    return {"mean": -offset / scale, "std": 1 / scale}
