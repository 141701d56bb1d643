"""Record at export what a bundle is later judged by: the golden chunk, and what training saw."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.golden import Golden, GoldenSettings, n_previous
from vivace.deploy.bundle.normalization import Normalization, Range
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.arrays import is_image
from vivace.policies.errors import ParityError
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.spec import PolicySpec

GOLDEN_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2, "bf16": 5e-2}
"""Precision -> how far a chunk may be from the golden one on another machine, in units of what 1 is to the
policy. Another order of sums moves fp32 by 1e-6 to 1e-5; int8 products saturate on CPUs without VNNI."""
GOLDEN_KEY = (0, 0)
"""Of the golden chunk's noise."""
_JITTER = 0.25
"""Of the golden observation's numbers, in units of the policy: where a normalisation has its zero, its span
does not show."""
_STANDARD = 4.0
"""Standard deviations either side of the mean, where statistics hold no minimum and maximum."""


def recorded(policy: OrtPolicy, batch: Mapping[str, np.ndarray], settings: GoldenSettings) -> Golden:
    """Make a golden observation of the first one of a batch, and the chunks that a bundle makes of it.

    Args:
        policy: the bundle, without a golden chunk.
        batch: normalised observations (B, To, ...), by the policy's names.
        settings: how the chunks are made.
    """
    bundle, spec = policy.bundle, policy.spec
    random = np.random.default_rng(GOLDEN_KEY)
    seen = {
        key: _raw(key, batch[bundle.policy_name(key)][0], bundle.observations[key], random)
        for key in spec.observation_shapes
    }
    policy.task = settings.task
    batch, keys = {key: value[None] for key, value in seen.items()}, [settings.noise_key]
    chunk, cut = policy.predict(batch, keys)[0], policy.predict(batch, keys, deadline_s=0.0)[0]
    wish = random.uniform(-_JITTER, _JITTER, (n_previous(spec), spec.action_dim)).astype(np.float32)
    golden = Golden(seen, policy.restored(wish[None], batch)[0], chunk, cut)
    if bundle.program.tokens is not None:
        return replace(golden, logits=policy.logits.copy())
    if bundle.program.is_whole:
        return golden
    if not spec.is_cut:
        policy.chunking = RealTimeChunking()
        continued = policy.predict(golden.batch | golden.before, keys)[0]
        policy.chunking = None
        golden = replace(golden, continued=continued)
    if not bundle.program.carries:
        return golden
    policy.predict(batch, keys)
    return replace(golden, after=policy.predict(batch | settings.follows, [settings.next_key])[0])


def check_golden(session: Any, bundle: Bundle, golden: Golden, settings: GoldenSettings) -> None:
    """Raise `ParityError` unless torch, with its own processors, makes the golden chunk too.

    Args:
        session: a `policies.session.Session` of the policy under the bundle's plan, told the golden
            instruction.
        bundle: of fp32.
        golden: what it did.
        settings: how it was made.
    """
    wanted = session.predict(golden.batch, [settings.noise_key])[0]
    unit = bundle.actions.span / bundle.actions.gain
    error = float((np.abs(golden.chunk - wanted) / unit).max())
    if not error <= settings.tolerance:
        raise ParityError(
            f"from the robot's units to the robot's units ONNX Runtime differs from torch by {error:.2g}, "
            f"{settings.tolerance:g} is allowed; the checkpoint's processors do what a bundle cannot"
        )


def training_ranges(
    preprocess: Any, spec: PolicySpec, renamed: Mapping[str, str]
) -> Iterator[tuple[str, Range]]:
    """Return what training saw of every observation of numbers, as far as a checkpoint's statistics say.

    Args:
        preprocess: its pipeline of processors.
        spec: of its policy, whose observations have the robot's names.
        renamed: the robot's name of an observation -> the policy's, where they differ.
    """
    for key, shape in spec.observation_shapes.items():
        for step in preprocess.steps:
            stats = getattr(step, "_tensor_stats", {}).get(renamed.get(key, key), {})
            if is_image(key) or not stats:
                continue
            # An observation that steps before pad behind has statistics as wide as they make it.
            known = {name: value.detach().cpu().float().numpy() for name, value in stats.items()}
            known = {name: value[: shape[0]] if value.ndim else value for name, value in known.items()}
            if {"min", "max"} <= set(known):
                low, high = known["min"], known["max"]
            elif {"mean", "std"} <= set(known):
                low, high = (known["mean"] + sign * _STANDARD * known["std"] for sign in (-1, 1))
            else:
                continue
            yield key, Range(np.broadcast_to(low, shape), np.broadcast_to(high, shape))
            break


def _raw(key: str, value: np.ndarray, norm: Normalization, random: np.random.Generator) -> np.ndarray:
    """A normalised observation (To, ...) in the robot's units, moved a little; images HWC uint8."""
    if not is_image(key):
        jitter = random.uniform(-_JITTER, _JITTER, value.shape).astype(np.float32)
        return norm.restore(value + jitter)
    picture = np.moveaxis(norm.restore(value), -3, -1)
    return np.clip(np.round(picture * 255), 0, 255).astype(np.uint8)
