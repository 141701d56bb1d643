"""Record at export what a bundle is later judged by: the golden chunk, and what training saw."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.golden import Golden, GoldenSettings, n_previous
from vivace.deploy.bundle.normalization import Normalization
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.arrays import is_image
from vivace.policies.errors import ParityError
from vivace.policies.sampling.real_time_chunking import RealTimeChunking

GOLDEN_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2, "bf16": 5e-2}
"""Precision -> how far a chunk may be from the golden one on another machine, in units of what 1 is to the
policy. Another order of sums moves fp32 by 1e-6 to 1e-5; int8 products saturate on CPUs without VNNI."""
GOLDEN_KEY = (0, 0)
"""Of the golden chunk's noise."""
_JITTER = 0.25
"""Of the golden observation's numbers, in units of the policy: where a normalisation has its zero, its span
does not show."""


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
    if bundle.program.continues and not bundle.program.is_whole and not spec.is_cut:
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


def _raw(key: str, value: np.ndarray, norm: Normalization, random: np.random.Generator) -> np.ndarray:
    """A normalised observation (To, ...) in the robot's units, moved a little; images HWC uint8."""
    if not is_image(key):
        jitter = random.uniform(-_JITTER, _JITTER, value.shape).astype(np.float32)
        return norm.restore(value + jitter)
    picture = np.moveaxis(norm.restore(value), -3, -1)
    return np.clip(np.round(picture * 255), 0, 255).astype(np.uint8)
