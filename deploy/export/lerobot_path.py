"""lerobot's own way from what a robot sees to what it does: what every other way is proven against.

It is that of lerobot-eval: an observation of one tick goes through the checkpoint's preprocessor, the
policy's `select_action` keeps its own queues, and each action goes through the postprocessor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.arrays import is_image, observation_layout
from vivace.policies.batch import Batch
from vivace.policies.execution import as_trained, sample
from vivace.policies.features import renames
from vivace.policies.load import LoadedPolicy
from vivace.policies.sampling.noise import GlobalNoise, seeded
from vivace.policies.session import Session
from vivace.policies.spec import PolicySpec
from vivace.policies.training_range import training_ranges

_SEED = 0


@torch.no_grad()
def selected(loaded: LoadedPolicy, seen: Mapping[str, np.ndarray], task: str = "") -> np.ndarray:
    """Actions (n, A), in the robot's units, that lerobot selects of one chunk while a robot sees the same.

    Args:
        loaded: the checkpoint.
        seen: the robot's name -> one observation, images HWC uint8.
        task: instruction, for a policy that reads one.
    """
    policy, found = loaded.policy, []
    policy.reset()
    with seeded(_SEED, loaded.placement.device):
        for _ in range(loaded.staged.spec.n_action_steps):
            ready = loaded.preprocess({**lerobots(seen), "task": [task]})
            found.append(loaded.postprocess(policy.select_action(ready)))
    policy.reset()
    return torch.cat(found).cpu().numpy()


@torch.no_grad()
def sampled(loaded: LoadedPolicy, batch: Batch) -> torch.Tensor:
    """The same chunk (1, n, A), normalised, as the staged form samples it of a prepared observation.

    An opaque policy draws as in lerobot's own loop here, not by the noise that names a chunk.
    """
    spec, execution = loaded.staged.spec, as_trained(loaded.staged)
    with seeded(_SEED, loaded.placement.device):
        if isinstance(execution.policy, OpaquePolicy):
            chunk = execution.policy.chunk(execution.policy.encode(batch))
        else:
            chunk = sample(execution, batch, GlobalNoise())
    return chunk[:, spec.first_action : spec.first_action + spec.n_action_steps]


def path_error(loaded: LoadedPolicy, task: str = "", seen: Mapping[str, np.ndarray] | None = None) -> float:
    """How far `Session` is from lerobot's own path with one observation.

    Args:
        loaded: the checkpoint.
        task: instruction, for a policy that reads one.
        seen: as of `selected`; made up when None.

    Returns:
        Largest difference of an action, in units of the largest one where that exceeds 1.
    """
    n = loaded.staged.spec.n_obs_steps
    seen = plausible(loaded) if seen is None else seen
    window = {key: np.stack([value] * n)[None] for key, value in seen.items()}
    found = loaded.postprocess(sampled(loaded, Session(loaded, task=task).prepare(window)))[0].cpu().numpy()
    wanted = selected(loaded, seen, task)
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def lerobots(seen: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """An observation as lerobot gives it to a preprocessor: a batch of one, pictures CHW in [0, 1]."""
    return {
        key: torch.from_numpy(np.moveaxis(value, -1, 0).astype(np.float32) / np.float32(255))[None]
        if is_image(key)
        else torch.from_numpy(np.asarray(value, np.float32))[None]
        for key, value in seen.items()
    }


def plausible(loaded: LoadedPolicy, spec: PolicySpec | None = None) -> dict[str, np.ndarray]:
    """One observation as a robot gives it: noise for pictures, numbers in the middle of training's.

    Args:
        loaded: the checkpoint.
        spec: with other sizes of pictures than the checkpoint's own.
    """
    spec, random = spec or loaded.staged.spec, np.random.default_rng(_SEED)
    ranges = dict(training_ranges(loaded.preprocess, spec, renames(loaded.preprocess)))
    found = {}
    for key, ((_, *shape), _) in observation_layout(spec).items():
        if is_image(key):
            found[key] = random.integers(0, 256, shape, dtype=np.uint8)
        elif key in ranges:
            found[key] = ((ranges[key].low + ranges[key].high) / 2).astype(np.float32)
        else:
            found[key] = np.zeros(shape, np.float32)
    return found
