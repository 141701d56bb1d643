"""Whether a bundle acts as torch does, on observations that its plans were not calibrated on."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vivace.accel.apply import accelerate
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.program import SEEN as SEEN_PREFIX
from vivace.deploy.export.lerobot_path import plausible, sampled, selected
from vivace.deploy.export.packed import Packing, entered
from vivace.deploy.export.processors import fixed
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.batch import tensors
from vivace.policies.carry import LATENT, LOOKED, NOTHING, PAST, SEEN, Carry
from vivace.policies.dtype import cast
from vivace.policies.errors import ParityError
from vivace.policies.execution import Decoding, Denoising, Execution, executing, sample, sample_after
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.plain_data import plain
from vivace.policies.sampling.noise import EpisodeNoise, Noise
from vivace.policies.sampling.streams import Streams

TOLERANCE = 1e-5
"""Largest difference from torch's of normalised actions, and of a graph's outputs in units of their size."""
ROUNDINGS = 2.0
"""Where a sampler magnifies rounding beyond that, so many times as far from the exact actions as torch is."""
PATH_TOLERANCE = 1e-3
"""Largest difference from lerobot's own path: numpy and torch round observations otherwise, and samplers
magnify that."""
_NUDGES = 8
"""Runs of torch whose noise is rounded otherwise: one run may be near the exact actions by luck."""


@dataclass(frozen=True)
class ChunkError:
    """How far a chunk of normalised actions is from torch's."""

    largest: float
    mean: float
    rounding: float = 0.0
    """How far torch's may be from the same in float64; 0: not asked, for the difference is small."""
    is_right: bool = True
    """It is as near as rounding lets it be."""


def prove(
    policy: OrtPolicy,
    loaded: LoadedPolicy,
    execution: Execution,
    data: CalibrationData,
    precision: str,
    packs: Packing | None = None,
) -> dict[str, Any]:
    """Run a bundle beside torch; return what was exported, and how far off it is.

    Args:
        policy: the bundle under one of its plans.
        loaded: the checkpoint.
        execution: the same plan in torch.
        data: observations, of other episodes than the plan was calibrated on.
        precision: of the graphs; at fp32 they have to be right.
        packs: what the graphs do to observations first.
    """
    plan, bundle = execution.plan, policy.bundle
    must = precision == "fp32"
    errors = []
    for one, carry in [*((one, NOTHING) for one in data.ones()), *_followed(execution, data)]:
        errors.append(_chunk_error(policy, loaded, execution, one, must, carry, packs))
    means = [error.mean for error in errors]
    return {
        "fingerprint": plain(plan.fingerprint),
        "techniques": [technique.kind for technique in plan.techniques],
        "torch": torch.__version__,
        "observations": len(data.noise_keys),
        "chunks": len(errors),
        "observations_from": data.source,
        "seeds": sorted(data.seeds),
        "precision": precision,
        "chunk_error": max(error.largest for error in errors),
        "rounding_error": max(error.rounding for error in errors),
        "wrong": sum(not error.is_right for error in errors),
        "action_error": float(np.mean(means)),
        "action_error_spread": np.percentile(means, [10, 90]).tolist(),
        "graph_error": max(bundle.graphs[index].error for index in bundle.program.graphs),
        "tolerance": TOLERANCE,
    }


def prove_processors(policy: OrtPolicy, loaded: LoadedPolicy, data: CalibrationData) -> float:
    """Prove that a bundle brings observations in, and actions out, as lerobot's own path does.

    The policy itself is torch's on both sides, as trained, so that this is about all that is around it:
    from an observation in the robot's units to the actions in the robot's units.

    Args:
        policy: the bundle.
        loaded: the checkpoint.
        data: the newest of its first observation is what the robot sees, if it is known as a robot gives it.

    Returns:
        Largest difference of an action, in units of what 1 is to the policy.

    Raises:
        ParityError: it is more than rounding.
    """
    bundle, known = policy.bundle, plausible(loaded, policy.spec)
    seen = {key: np.asarray(data.raw[key])[0, -1] if key in data.raw else known[key] for key in known}
    window = {key: np.stack([value] * policy.spec.n_obs_steps)[None] for key, value in seen.items()}
    move = loaded.placement.move
    batch = {key: move(torch.from_numpy(value)) for key, value in policy.prepare(window).items()}
    batch |= fixed(loaded)
    found = policy.restored(sampled(loaded, batch).cpu().numpy(), window)[0]
    wanted = selected(loaded, seen, policy.task)
    unit = bundle.actions.span / bundle.actions.gain
    error = float((np.abs(found - wanted) / unit).max())
    if not error <= PATH_TOLERANCE:
        raise ParityError(
            f"from the robot's units to the robot's units the bundle differs from lerobot's own path by "
            f"{error:.2g} of a normalised action, {PATH_TOLERANCE:g} is allowed; the checkpoint's "
            "processors, or its select_action, do what a bundle cannot"
        )
    return error


def check_parity(name: str, receipt: Mapping[str, Any]) -> None:
    """Raise `ParityError` if a plan's graphs, or at fp32 its chunks, differ from torch's."""
    graph, chunk = receipt["graph_error"], receipt["chunk_error"]
    if graph <= TOLERANCE and np.isfinite(chunk) and not receipt["wrong"]:
        return
    raise ParityError(
        f"under plan {name!r} ONNX Runtime differs from torch by {max(graph, chunk):.2g} on "
        f"{receipt['wrong']} of {receipt['chunks']} chunks, {TOLERANCE:g} is allowed, or "
        f"{ROUNDINGS:g} times torch's own rounding, which is {receipt['rounding_error']:.2g}"
    )


def sample_bundle(policy: OrtPolicy, one: CalibrationData, carry: Carry = NOTHING) -> np.ndarray:
    """Sample one chunk of normalised actions (1, H, A) of one observation, as torch's `sample` would."""
    batch = {key: value.cpu().numpy() for key, value in tensors(one.batch).items()}
    if carry:
        return policy.sample_after(batch, Streams(one.noise_keys), carry)[0]
    draft = None if one.draft is None else one.draft[0].cpu().numpy()
    return policy.sample(batch, Streams(one.noise_keys), draft)


def _followed(execution: Execution, data: CalibrationData) -> Iterator[tuple[CalibrationData, Carry]]:
    """Observations, and what chunks left that they may follow: as if all were of one episode."""
    if not isinstance(execution, Denoising) or not execution.carries:
        return
    carry, spec = NOTHING, execution.policy.spec
    past = execution.policy.placement.move(torch.tensor([spec.n_action_steps]))
    for one in data.ones():
        if carry:
            yield one, carry
        _, left = sample_after(execution, one.batch, EpisodeNoise(one.noise_keys), carry)
        carry = {**left, PAST: past}


def _for_bundle(carry: Carry) -> Carry:
    """What a chunk of torch left, as a bundle's chunks leave it."""
    if not carry:
        return carry
    plain = {name: carry[name].cpu().numpy() for name in (LATENT, PAST)}
    if SEEN not in carry:
        return plain
    leaves = pytree.tree_leaves(carry[SEEN])
    seen = {f"{SEEN_PREFIX}{i}": leaf.cpu().numpy() for i, leaf in enumerate(leaves)}
    return {**plain, SEEN: seen, LOOKED: carry[LOOKED]}


def _sampled(
    execution: Execution, one: CalibrationData, noise: Noise, carry: Carry, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Sample one chunk in torch."""
    batch = one.batch if dtype == torch.float32 else cast(one.batch, dtype)
    match execution:
        case Denoising():
            given = pytree.tree_map_only(Tensor, lambda leaf: _wide(leaf, dtype), dict(carry))
            return sample_after(execution, batch, noise, given)[0].cpu().numpy()
    return sample(execution, batch, noise, one.draft).cpu().numpy()


def _wide(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    return leaf.to(dtype) if leaf.is_floating_point() else leaf


def _chunk_error(
    policy: OrtPolicy,
    loaded: LoadedPolicy,
    execution: Execution,
    one: CalibrationData,
    must: bool,
    carry: Carry,
    packs: Packing | None,
) -> ChunkError:
    """Compare one chunk; with `must` it has to be right."""
    wanted = _sampled(execution, one, EpisodeNoise(one.noise_keys), carry)
    found = sample_bundle(policy, one, _for_bundle(carry))
    difference = np.abs(found - wanted)
    largest, mean = float(difference.max()), float(difference.mean())
    if largest <= TOLERANCE or not must:
        return ChunkError(largest, mean)
    if isinstance(execution, Decoding) or not np.isfinite(largest):
        return ChunkError(largest, mean, is_right=False)
    exact = _exact(loaded, execution, one, carry, packs)
    nudged = [_sampled(execution, one, _Nudged(one, seed), carry) for seed in range(_NUDGES)]
    ours, *torchs = (float(np.abs(actions - exact).max()) for actions in (found, wanted, *nudged))
    return ChunkError(largest, mean, max(torchs), ours <= max(TOLERANCE, ROUNDINGS * max(torchs)))


class _Nudged:
    """An observation's noise, each number of it up or down by the last bit of float32."""

    def __init__(self, one: CalibrationData, seed: int) -> None:
        self._noise, self._signs = EpisodeNoise(one.noise_keys), np.random.default_rng(seed)

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        drawn = self._noise(shape, like)
        ends = self._signs.choice(np.array([-np.inf, np.inf], np.float32), size=shape)
        return torch.nextafter(drawn, torch.from_numpy(ends).to(drawn))


def _exact(
    loaded: LoadedPolicy,
    execution: Execution,
    one: CalibrationData,
    carry: Carry,
    packs: Packing | None,
) -> np.ndarray:
    """The chunk in float64, from the same noise."""
    double = copy.deepcopy(loaded.policy).double()
    spec = loaded.staged.spec
    staged = entered(executing(stage(double, spec.action_kinds), spec.n_action_steps), packs)
    run = accelerate(staged, execution.plan)
    drawn = EpisodeNoise(one.noise_keys)

    def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return drawn(shape, like.float()).to(like)

    return _sampled(run, one, noise, carry, torch.float64)
