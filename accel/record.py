"""Record every block's output over an uncached run, and the chunks: what plans are calibrated on."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vivace.accel.memory import remembered
from vivace.accel.technique import CalibrationData
from vivace.policies.block import Block
from vivace.policies.dtype import wide
from vivace.policies.errors import CalibrationError, NonFiniteActions
from vivace.policies.execution import Denoising, Execution, always_compute, eagerly, sample
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.staged import DenoisingPolicy


@dataclass(frozen=True)
class Recording:
    """How each block's output changes over the steps of the sampler."""

    similarity: dict[str, np.ndarray]
    """Block id -> cosine similarity between steps, mean over observations, (S, S) in [-1, 1]."""
    volatility: dict[str, float]
    """Block id -> mean over pairs of steps of the mean absolute difference."""


def recorded(policy: DenoisingPolicy, outputs: dict[str, list[Tensor]]) -> DenoisingPolicy:
    """Return a twin whose denoiser's blocks add their outputs, flattened (B, F), to a list of their own."""
    ids = policy.spec.block_ids

    def told(block: Block) -> Block:
        def fn(h: Tensor, *cond: Tensor) -> Tensor:
            out = block.fn(h, *cond)
            outputs[block.id].append(out.flatten(1))
            return out

        return replace(block, fn=fn) if block.id in ids else block

    return policy.with_blocks(told)


@remembered
def record(execution: Denoising, data: CalibrationData) -> Recording:
    """Sample once, every block computed, and compare each block's outputs between steps.

    Raises:
        CalibrationError: an output is not finite.
    """
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    uncached = replace(eagerly(execution), policy=recorded(execution.policy, outputs), action=always_compute)
    with suppress(NonFiniteActions):  # which block they came from is said below
        sample(uncached, data.batch, EpisodeNoise(data.noise_keys))
    similarity, volatility = {}, {}
    for name in execution.policy.spec.block_ids:
        kept = outputs.pop(name)
        rows = min(len(out) for out in kept)  # guidance may stop on the way: its rows come last
        features = wide(torch.stack([out[:rows] for out in kept], dim=1))  # (B, S, F)
        if not features.isfinite().all():
            raise CalibrationError(
                f"block {name!r} gave NaN or infinity on the calibration observations; check the checkpoint"
            )
        unit = torch.nn.functional.normalize(features, dim=-1)
        similarity[name] = (unit @ unit.mT).mean(0).clamp(-1, 1).double().cpu().numpy()
        volatility[name] = float(mean_difference(features))
    return Recording(similarity, volatility)


@remembered
def chunks(execution: Execution, data: CalibrationData) -> Tensor:
    """Sample normalised actions (B, H, A) of all observations, with their own noise."""
    return sample(eagerly(execution), data.batch, EpisodeNoise(data.noise_keys), data.draft)


def mean_difference(features: Tensor) -> Tensor:
    """Mean over pairs of steps of the mean absolute difference, of features (B, S, F); 0 for one step.

    Over sorted values x_0 <= … <= x_{S-1} the sum over pairs is sum_k (2k - S + 1) x_k, so no pair is formed.
    """
    steps = features.shape[1]
    ranks = 2 * torch.arange(steps, dtype=features.dtype, device=features.device) - (steps - 1)
    pairs = max(1, steps * (steps - 1) // 2)
    return (features.sort(dim=1).values * ranks[:, None]).sum(1).mean() / pairs
