"""How a staged policy is run, and the two loops that run it: denoising steps, and tokens."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vivace.policies.block import EMPTY, Cache, Runner, compute
from vivace.policies.dtype import dtype_of
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.language.decoding import Decoded, Decoder, greedy
from vivace.policies.language.prefix import TokenSelector, keep_all
from vivace.policies.sampling.noise import Noise
from vivace.policies.sampling.real_time_chunking import NO_DENOISING, Continuation
from vivace.policies.sampling.samplers import Sampler, Step
from vivace.policies.sampling.step_table import StepTable
from vivace.policies.spec import check_actions
from vivace.policies.staged import Batch, Context, DenoisingPolicy, TokenPolicy
from vivace.policies.stopwatch import Mark, ignore


def executing(policy: Any, n_action_steps: int | None) -> Any:
    """Return a twin of a staged policy that executes so many actions of a chunk; itself when None."""
    if n_action_steps is None:
        return policy
    twin = copy.copy(policy)
    twin.spec = replace(policy.spec, n_action_steps=n_action_steps)
    return twin


ActionRunner = Callable[[int, Cache], Runner]
"""(step index, what the previous step left) -> the runner of the denoiser's blocks."""


def always_compute(index: int, cache: Cache) -> Runner:
    """Compute every block at every step."""
    return compute


Evaluate = Callable[["Execution", Step, Tensor, Context, Cache], tuple[Tensor, Cache]]


def evaluate(
    execution: "Execution", step: Step, x: Tensor, context: Context, cache: Cache
) -> tuple[Tensor, Cache]:
    """Call the denoiser at one step; returns its output and what the next step may use."""
    run = execution.action(step.index, cache)
    out = execution.policy.denoise(x, execution.policy.condition(step, context), run)
    return out, run.cache


@dataclass(frozen=True)
class Execution:
    """How a staged policy is run; the defaults mean everything, always.

    `language` and `select` go to the policy's `encode`; a policy without a language stage ignores them.
    A denoising policy is run by its sampler, a token policy by its decoder.
    """

    policy: Any
    """A `DenoisingPolicy` or a `TokenPolicy`."""
    sampler: Sampler
    action: ActionRunner = always_compute
    evaluate: Evaluate = evaluate
    language: Runner = compute
    select: TokenSelector = keep_all
    decoder: Decoder = greedy
    plan: Any = None
    """The `AccelerationPlan` it is run under, to tell it from others; None as trained."""

    @classmethod
    def of(cls, policy: "DenoisingPolicy | TokenPolicy") -> "Execution":
        """Run the policy as its checkpoint asks."""
        return cls(policy, getattr(policy, "sampler", NO_STEPS))

    @property
    def writes_tokens(self) -> bool:
        """Whether the policy is a `TokenPolicy`."""
        return hasattr(self.policy, "n_tokens")


NO_STEPS = Sampler("none", ())
"""Of a policy that does not denoise."""


@torch.inference_mode()
def decode(
    execution: Execution, batch: Batch, noise: Noise, draft: Tensor | None = None, mark: Mark = ignore
) -> Decoded:
    """Decode the action tokens of a batch of observations; `draft` as of `Decoder`, `mark` as of `sample`."""
    prompt = execution.policy.encode(batch, execution.language, execution.select)
    mark("encode")
    decoded = execution.decoder(execution.policy, prompt, noise, draft, execution.language)
    mark("decode")
    return decoded


def sample(
    execution: Execution,
    batch: Batch,
    noise: Noise,
    draft: Tensor | None = None,
    follow: Continuation | None = None,
    mark: Mark = ignore,
) -> Tensor:
    """Sample chunks of normalised actions (B, H, A) for a batch of observations (B, To, ...).

    Args:
        execution: the policy, and how to run it.
        batch: normalised observations.
        noise: where random numbers come from.
        draft: of a policy that writes tokens, see `Decoder`.
        follow: what the chunks continue; of a policy that denoises.
        mark: told when "encode" and "denoise" or "decode" are over; the rest belongs to "finish".

    Raises:
        NonFiniteActions: an action is NaN or infinite.
    """
    if follow is not None:
        check_continuing(execution)
    needs_gradients = follow is not None and follow.settings.jacobian == "exact"
    with torch.no_grad() if needs_gradients else torch.inference_mode():
        actions = _sample(execution, batch, noise, draft, follow, mark)
    check_actions(actions.float().cpu(), execution.policy.spec.type)
    return actions


def _sample(
    execution: Execution,
    batch: Batch,
    noise: Noise,
    draft: Tensor | None,
    follow: Continuation | None,
    mark: Mark,
) -> Tensor:
    policy = execution.policy
    if execution.writes_tokens:
        return policy.detokenize(decode(execution, batch, noise, draft, mark).tokens)
    context = policy.encode(batch, execution.language, execution.select)
    mark("encode")
    like = next(value for value in batch.values() if value.is_floating_point())
    dtype = dtype_of(getattr(policy, "policy", None))
    like = like.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    x = noise((len(next(iter(batch.values()))), policy.spec.horizon, policy.spec.action_dim), like)
    memory: tuple[Tensor, ...] = ()
    cache = EMPTY
    for step in execution.sampler.steps:
        if follow is None:
            out, cache = execution.evaluate(execution, step, x.to(dtype), context, cache)
            out = out.to(x.dtype)
        else:
            out, cache = _follow(execution, step, x, context, cache, follow)
        x, memory = step.advance(x, out, memory, noise)
    mark("denoise")
    return policy.finish(x if follow is None else follow.hold(x), context)


def check_continuing(execution: Execution) -> None:
    """Raise `UnsupportedPolicy` unless its steps can be corrected so that a chunk continues another."""
    if execution.writes_tokens or any(step.table is None for step in execution.sampler.steps):
        raise UnsupportedPolicy(NO_DENOISING.format(execution.policy.spec.type))


def _follow(
    execution: Execution, step: Step, x: Tensor, context: Context, cache: Cache, follow: Continuation
) -> tuple[Tensor, Cache]:
    """What the denoiser says at one step, drawn towards what the chunk continues."""
    table = cast(StepTable, step.table)
    dtype = dtype_of(getattr(execution.policy, "policy", None))
    if follow.settings.jacobian == "identity":
        out, cache = execution.evaluate(execution, step, x.to(dtype), context, cache)
        out = out.to(x.dtype)
        return follow.correct(table, out, follow.error(table, x, out)), cache
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out, cache = execution.evaluate(execution, step, x.to(dtype), context, cache)
        out = out.to(x.dtype)
        clean = table.clean_x * x + table.clean_out * out
        error = follow.error(table, x, out).detach()
        (pulled,) = torch.autograd.grad(clean, x, error)
    cache = tree_map_only(Tensor, Tensor.detach, dict(cache))
    return follow.correct(table, out.detach(), pulled * (table.alpha + table.sigma)), cache
