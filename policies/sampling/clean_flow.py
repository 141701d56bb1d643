"""Samplers of the flow x = t n + (1 - t) a from t = 1 to 0, the denoiser predicting a itself.

    renoise   x(t') = t' n + (1 - t') a(t), n the noise that the chunk began with
    euler     x(t') = t' m + (1 - t') a(t), m the noise that x and a(t) mean; the straight line to a(t)

Sources: renoise as lerobot's xvla samples (X-VLA, arXiv 2510.10274); euler is the flow's own step.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vivace.policies.errors import BadSetting
from vivace.policies.sampling.noise import Noise
from vivace.policies.sampling.sampler import Memory, Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing, check_flow_steps, falling_times
from vivace.policies.sampling.step_table import StepTable

CLEAN_FLOWS = ("renoise", "euler")
"""Names of these samplers."""


def make_clean_flow_sampler(name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
    """Build a sampler by name.

    Args:
        name: one of `CLEAN_FLOWS`.
        n_steps: of one width each, unless `spacing` says otherwise.
        spacing: `OWN`, or widths of steps.

    Raises:
        BadSetting: unknown name, no steps, or a spacing by another name than `OWN`.
    """
    if name not in CLEAN_FLOWS:
        raise BadSetting(f"unknown sampler {name!r}; known samplers: {', '.join(CLEAN_FLOWS)}")
    check_flow_steps(name, n_steps, spacing)
    times = [i / n_steps for i in range(n_steps, -1, -1)]
    if isinstance(spacing, tuple):
        times = [*falling_times(spacing, n_steps), 0.0]
    build = _renoised if name == "renoise" else _straight
    return Sampler(name, tuple(build(i, *pair) for i, pair in enumerate(pairwise(times))))


def _clean_flow(t: float) -> dict[str, Any]:
    """Coefficients at a time, where the clean chunk itself is predicted."""
    return {"t": t, "alpha": 1 - t, "sigma": t, "clean_out": 1.0}


def _renoised(index: int, t: float, following: float) -> Step:
    """Memory is the noise; with lerobot's rounding, which takes 1 - t in float32."""
    share = float(1 - torch.tensor(following))
    is_first, is_last = index == 0, following == 0

    def advance(x: Tensor, out: Tensor, memory: Memory, noise: Noise) -> tuple[Tensor, Memory]:
        start = x if is_first else memory[0]
        return (out, ()) if is_last else (start * following + out * share, (start,))

    table = StepTable(
        **_clean_flow(t),
        x=following if is_first else 0.0,
        out=share,
        memory=() if is_first else (following,),
        keep=() if is_last else ("x",) if is_first else ("m0",),
    )
    return Step(index, torch.tensor(t), advance, table)


def _straight(index: int, t: float, following: float) -> Step:
    left = following / t

    def advance(x: Tensor, out: Tensor, memory: Memory, noise: Noise) -> tuple[Tensor, Memory]:
        return left * x + (1 - left) * out, memory

    return Step(index, torch.tensor(t), advance, StepTable(**_clean_flow(t), x=left, out=1 - left))
