"""What training needs to know of one kind of policy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from vivace.eval.training.trainer import Batches
from vivace.policies.errors import BadSetting
from vivace.policies.load import load_policy

Policy = TypeVar("Policy")


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
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Name in the checkpoint -> folder that is copied there."""


def begun[Policy](path: str, kind: type[Policy]) -> tuple[Policy, Any, Any]:
    """A trained policy to go on from, with its processors."""
    loaded = load_policy(path)
    if not isinstance(loaded.policy, kind):
        raise BadSetting(
            f"{path} holds a policy of type {loaded.policy.config.type!r}, --policy.type asks for "
            f"{getattr(kind, 'name', kind.__name__)!r}; give the type of the checkpoint"
        )
    return loaded.policy, loaded.preprocess, loaded.postprocess


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
