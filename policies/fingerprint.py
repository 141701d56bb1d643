"""Fingerprints: which policy a plan was made for."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from vivace.policies.spec import Fingerprint

_RUNTIME = {"device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path",
            "control_hz", "action_kinds"}  # fmt: skip
"""Config fields that do not change what the policy computes."""
_OUTSIDE: dict[str, Any] = {"rename_map": {}}
"""Settings of processors that say what the robot calls its observations, as they are in the fingerprint."""
_EXECUTION = {"n_action_steps", "temporal_ensemble_coeff", "ensemble_horizon", "ensemble_alpha", "rtc_config",
              "compile_model", "compile_mode", "gradient_checkpointing", "pretrained_backbone_weights",
              "pretrained_revision", "use_peft"}  # fmt: skip
"""Further ones: how its chunks are executed and by what, and what it was before its weights were loaded."""


def fingerprint(policy: nn.Module, blocks: tuple[str, ...], processors: Iterable[Any] = ()) -> Fingerprint:
    """Fingerprint a lerobot policy: type, config, every tensor, its processors, block ids.

    Of the config only what differs from the defaults counts, so that a field added later changes nothing.

    Args:
        policy: lerobot's own object.
        blocks: ids of its blocks.
        processors: lerobot's pipelines around it.
    """
    config: Any = policy.config
    usual = _defaults(config)
    settings = {
        name: value
        for name, value in _plain(dataclasses.asdict(config)).items()
        if name not in _RUNTIME and (name not in usual or usual[name] != value)
    }
    computing = {name: value for name, value in settings.items() if name not in _EXECUTION}
    weights = hashlib.sha256()
    _add(weights, policy.state_dict())
    return Fingerprint(
        policy_type=config.type,
        config=_text_hash(computing),
        weights=weights.hexdigest(),
        processors=_processors_hash(processors),
        blocks=blocks,
        former_config=_text_hash(settings),
    )


def _text_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _processors_hash(pipelines: Iterable[Any]) -> str:
    """Hash of every step's kind, settings and tensors, in their order."""
    digest = hashlib.sha256()
    for pipeline in pipelines:
        for step in pipeline.steps:
            settings = {
                key: _OUTSIDE.get(key, value)
                for key, value in step.get_config().items()
                if key not in _RUNTIME
            }
            digest.update(json.dumps([type(step).__name__, _plain(settings)], sort_keys=True).encode())
            _add(digest, step.state_dict())
    return digest.hexdigest()


def _add(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _defaults(config: Any) -> dict[str, Any]:
    """Field -> default, of those that have one and are plain data."""
    usual = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            usual[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            usual[field.name] = _plain(field.default_factory())
    return usual


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value if isinstance(value, int | float) else str(value)
