"""A row of a table: how fast a plan is, how far its actions are from the plain loop's, and what they cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vivace.accel.decoding import decoding_of
from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.accel.variant import Variant
from vivace.deploy.telemetry.histogram import percentile
from vivace.eval.measure.action_error import action_errors, row_errors
from vivace.eval.measure.statistics import ratio_of_medians, spread_of
from vivace.eval.measure.variants import LEROBOT
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.execution import Decoding, Denoising, Execution, decode, eagerly
from vivace.policies.sampling.noise import EpisodeNoise


def pareto_row(
    variant: Variant,
    execution: Execution,
    times: Mapping[str, Sequence[float]],
    reference: torch.Tensor,
    data: CalibrationData,
) -> dict[str, Any]:
    """Latency, ratio to the plain loop, action error and FLOPs of one plan.

    Args:
        variant: the plan.
        execution: the policy under it.
        times: name -> latencies [s], of the same rounds; "plain" is what the others are compared with.
        reference: normalised actions (B, H, A) of the plain loop on `data`, with the same noise.
        data: observations to compare actions on.
    """
    found: dict[str, Any] = {"action_error": None}
    if execution.carries:
        found["follows"] = True
    eager = eagerly(execution)  # how it is launched changes neither what it computes nor how much
    may_draw = variant is LEROBOT or eager is not execution
    own_noise = may_draw and _draws_inside(eager.policy, data)
    compared = {"action_error": None} if own_noise else _compared(eager, reference, data)
    found |= {"gflop": gflop(eager, data.one)} | compared
    match execution:
        case Decoding():
            found |= _token_speed(execution, times[variant.name])
    return found | {
        "name": variant.name,
        "label": variant.label,
        "colour": variant.colour,
        **speed_row(times, variant.name),
    }


def speed_row(times: Mapping[str, Sequence[float]], name: str) -> dict[str, Any]:
    """Latency of one of those that were timed in the same rounds, and its ratios to what it is held against.

    Args:
        times: name -> latencies [s]; "plain", and perhaps lerobot's own chunk, are among them.
        name: of the one.
    """
    ratio = ratio_of_medians(times["plain"], times[name])
    found = {
        "latency_s": float(np.median(times[name])),
        "latency_spread": [percentile(times[name], p) for p in (10, 90)],
        "ratio": ratio.ratio,
        "ratio_interval": list(ratio.interval),
    }
    if LEROBOT.name in times:
        found["over_lerobot"] = ratio_of_medians(times[LEROBOT.name], times[name]).ratio
    return found


def gflop(execution: Execution, one: Mapping[str, torch.Tensor]) -> float | None:
    """Work of one chunk [GFLOP]; None for an opaque policy, whose loop cannot be counted."""
    return None if execution.is_opaque else count_flops(execution, dict(one)).total / 1e9


def _draws_inside(policy: Any, data: CalibrationData) -> bool:
    """Whether a policy draws its noise itself, where nobody can give it another's."""
    return isinstance(policy, OpaquePolicy) and not policy.takes_noise and policy.draws(data.one)


def _compared(execution: Execution, reference: torch.Tensor, data: CalibrationData) -> dict[str, Any]:
    """Mean and spread over observations: action error and, of a policy that writes tokens, passes.

    Returns:
        "action_error" and "action_error_spread"; "passes", "passes_spread", "passes_of" every observation,
        and "settled", the mean pass at which each token of the chunk last changed.
    """
    match execution:
        case Denoising(carries=True):  # its chunks come from others, and not from the same noise
            return {}
        case Denoising():
            return spread_of("action_error", action_errors(execution, reference, data))
    found = decode(execution, data.batch, EpisodeNoise(data.noise_keys), data.draft)
    actions = execution.policy.detokenize(found.tokens)
    return {
        **spread_of("action_error", row_errors(actions, reference)),
        **spread_of("passes", found.passes.tolist()),
        "passes_of": found.passes.tolist(),
        "settled": found.settled.float().mean(0).tolist(),
    }


def _token_speed(execution: Decoding, times: Sequence[float]) -> dict[str, Any]:
    """Tokens a second over the whole chunk, reading the prompt included, and the slowest chunks [s]."""
    policy = execution.policy
    decoding = decoding_of(execution)
    n = decoding.n_written(policy) if decoding else policy.n_tokens
    return {
        "tokens_per_s": n / float(np.median(times)),
        "latency_p95_s": percentile(times, 95),
        "latency_max_s": max(times),
    }
