"""How a staged policy is run: two executions, one of each kind of policy, and the loops that run them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vivace.policies.batch import check_even
from vivace.policies.block import EMPTY, Cache, Runner, compute
from vivace.policies.carry import LATENT, NOTHING, Carry
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.language.decoding import Decoded, Decoder, greedy
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.sampling.noise import ChunkNoise, Noise
from vivace.policies.sampling.real_time_chunking import (
    CUT_SHORT,
    NO_DENOISING,
    Continuation,
    RealTimeChunking,
)
from vivace.policies.sampling.sampler import Memory, Sampler, Step, presumed
from vivace.policies.sampling.step_table import StepTable
from vivace.policies.spec import Mode, check_actions
from vivace.policies.staged import (
    Batch,
    Context,
    DenoisingPolicy,
    StagedPolicy,
    TokenPolicy,
    continues_itself,
    denoises,
    writes_tokens,
)
from vivace.policies.stopwatch import Mark, ignore

ActionRunner = Callable[[int, Cache], Runner]
"""(step index, what the previous step left) -> the runner of the denoiser's blocks."""


def always_compute(index: int, cache: Cache) -> Runner:
    """Compute every block at every step."""
    return compute


DenoiserCall = Callable[["Denoising", Step, Tensor, Context, Cache], tuple[Tensor, Cache]]
"""(execution, step, x, context, what the step before left) -> the denoiser's output, what this one leaves."""


def call_denoiser(
    execution: "Denoising", step: Step, x: Tensor, context: Context, cache: Cache
) -> tuple[Tensor, Cache]:
    """Call the denoiser at one step; returns its output and what the next step may use."""
    run = execution.action(step.index, cache)
    out = execution.policy.denoise(x, execution.policy.condition(step, context), run)
    return out, run.cache


Reader = Callable[["Denoising", Batch, Carry], tuple[Context, Carry]]
"""(execution, batch, what the chunks before left) -> the context, what reading leaves to the next ones."""


def read_afresh(execution: "Denoising", batch: Batch, carry: Carry) -> tuple[Context, Carry]:
    """Encode the observations; nothing of it is left."""
    return execution.policy.encode(batch, execution.language, execution.select), NOTHING


Beginning = Callable[["Denoising", Tensor, Carry], Tensor]
"""(execution, noise, what the chunks before left) -> x at the step at which a chunk begins that follows."""


def begin_with_noise(execution: "Denoising", noise: Tensor, carry: Carry) -> Tensor:
    """Begin with noise alone."""
    return noise


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What both executions share: how observations are read, and under which plan.

    `language` and `select` go to the policy's `encode`; a policy without a language stage ignores them.
    """

    language: Runner = compute
    select: PatchSelector = keep_all
    plan: Any = None
    """The `AccelerationPlan` it is run under, to tell it from others; None as trained."""
    eager: Any = None
    """The execution that computes the same operation by operation, where this one has them compiled or
    captured for one chunk at a time (`launched`); None: it does so itself."""


@dataclass(frozen=True)
class Denoising(_Reading):
    """A policy that denoises, run by its sampler; the defaults mean everything, always."""

    policy: DenoisingPolicy
    sampler: Sampler
    action: ActionRunner = always_compute
    call: DenoiserCall = call_denoiser
    read: Reader = read_afresh
    begin: Beginning = begin_with_noise
    first: int = 0
    """Step at which a chunk begins that follows another, one of the sampler's `beginnings`, or their number;
    all others begin with noise at step 0."""
    cycle: int = 1
    """Chunks of an episode after which the work repeats: a chunk costs the mean of so many."""

    @property
    def is_opaque(self) -> bool:
        """Whether it is one piece, of which nothing can be counted or cached."""
        return not self.policy.blocks

    @property
    def is_one_pass(self) -> bool:
        """Whether it makes its chunk in one pass: nothing is denoised in steps that are known."""
        return not denoises(self.policy)

    @property
    def carries(self) -> bool:
        """Whether a chunk of it may make use of what the one before left."""
        return self.read is not read_afresh or self.begin is not begin_with_noise

    @property
    def told(self) -> dict[str, str | int]:
        """How actions come about, for tables."""
        return {"sampler": self.sampler.name, "n_steps": len(self.sampler)}


@dataclass(frozen=True)
class Decoding(_Reading):
    """A policy that writes its actions as tokens, run by its decoder."""

    policy: TokenPolicy
    decoder: Decoder = greedy

    @property
    def is_opaque(self) -> bool:
        """Its passes over tokens are always known."""
        return False

    @property
    def carries(self) -> bool:
        """What a chunk before meant comes in as a draft."""
        return False

    @property
    def told(self) -> dict[str, str | int]:
        """How actions come about, for tables."""
        return {"sampler": "greedy", "n_steps": self.policy.n_tokens}


Execution = Denoising | Decoding
"""How a staged policy is run."""


def launched[Run: Execution](execution: Run, **changes: Any) -> Run:
    """Return an execution of which only how its operations are launched is changed."""
    return replace(execution, eager=execution.eager or execution, **changes)


def eagerly[Run: Execution](execution: Run) -> Run:
    """Return what an execution computes, launched operation by operation.

    Code that is compiled or captured is made for one chunk at a time; where many are computed at once,
    counted or watched, what it was made of runs: it computes the same up to rounding.
    """
    return execution if execution.eager is None else replace(execution.eager, plan=execution.plan)


@overload
def as_trained(policy: DenoisingPolicy) -> Denoising: ...
@overload
def as_trained(policy: TokenPolicy) -> Decoding: ...
@overload
def as_trained(policy: StagedPolicy) -> Execution: ...
def as_trained(policy: StagedPolicy) -> Execution:
    """Return the execution that a policy's checkpoint asks for."""
    return Decoding(policy) if writes_tokens(policy) else Denoising(policy, policy.sampler)


def executing[Policy: StagedPolicy](
    policy: Policy,
    n_action_steps: int | None,
    control_hz: float | None = None,
    request_at: int | None = None,
    mode: Mode | None = None,
) -> Policy:
    """Return a twin of a staged policy that executes chunks otherwise; itself when nothing is said.

    Args:
        policy: the policy.
        n_action_steps: actions executed of a chunk; its own number when None.
        control_hz: rate of the demonstrations it was trained on [Hz], where its checkpoint does not say it.
        request_at: how many of them are left when the next chunk is asked for.
        mode: how thinking and acting overlap, where the user does not say it.
    """
    said: dict[str, Any] = {"n_action_steps": n_action_steps, "request_at": request_at, "mode": mode}
    if policy.spec.control_hz is None:
        said["control_hz"] = control_hz
    changes = {name: value for name, value in said.items() if value is not None}
    if not changes:
        return policy
    twin = copy.copy(policy)
    twin.spec = replace(policy.spec, **changes)
    return twin


@torch.inference_mode()
def decode(
    execution: Decoding, batch: Batch, noise: Noise, draft: Tensor | None = None, mark: Mark = ignore
) -> Decoded:
    """Decode the action tokens of a batch of observations; `draft` as of `Decoder`, `mark` as of `sample`."""
    prefix = execution.policy.encode(batch, execution.language, execution.select)
    mark("encode")
    decoded = execution.decoder(execution.policy, prefix, noise, draft, execution.language)
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

    They are the first ones of their episodes; `sample_after` samples those that come after others.

    Args:
        execution: the policy, and how to run it.
        batch: normalised observations.
        noise: where random numbers come from.
        draft: of a policy that writes tokens, see `Decoder`.
        follow: what the chunks continue; of a policy that denoises.
        mark: told when "encode" and "denoise" or "decode" are over; the rest belongs to "finish".

    Raises:
        NonFiniteActions: an action is NaN or infinite.
        UnsupportedPolicy: chunks of this policy cannot continue others.
    """
    match execution:
        case Denoising():
            return sample_after(execution, batch, noise, NOTHING, follow, mark)[0]
    check_even(batch)
    if follow is not None:
        check_continuing(execution, follow.settings)
    with torch.inference_mode():
        tokens = decode(execution, batch, noise, draft, mark).tokens
        actions = execution.policy.detokenize(tokens)
    return checked(actions, execution)


def checked(actions: Tensor, execution: Execution) -> Tensor:
    """Return actions; waits for the device, and raises `NonFiniteActions` if one is NaN or infinite."""
    check_actions(actions.float().cpu(), execution.policy.spec.type)
    return actions


def sample_after(
    execution: Denoising,
    batch: Batch,
    noise: Noise,
    carry: Carry,
    follow: Continuation | None = None,
    mark: Mark = ignore,
) -> tuple[Tensor, Carry]:
    """Sample chunks that come after others, of which they may make use; nothing is changed in place.

    Args:
        execution: the policy, and how to run it.
        batch: normalised observations.
        noise: where random numbers come from.
        carry: what the chunks before left, a row each, and how many of their actions are past (`PAST`);
            `NOTHING` of the first chunks of their episodes.
        follow: as of `sample`.
        mark: as of `sample`.

    Returns:
        Chunks of normalised actions (B, H, A), and what they leave to the next ones.
    """
    if not execution.is_opaque:
        check_even(batch)
    if follow is not None:
        check_continuing(execution, follow.settings)
    # Corrections may ask for gradients, and what was made in inference mode can never have any.
    is_inference = follow is None and not execution.carries
    with torch.inference_mode() if is_inference else torch.no_grad():
        actions, left = _denoised(execution, batch, noise, carry, follow, mark)
    return checked(actions, execution), left


def check_continuing(execution: Execution, settings: RealTimeChunking) -> None:
    """Raise unless chunks can continue others so: by correcting the steps, or as the policy itself does.

    Raises:
        UnsupportedPolicy: they cannot.
        BadSetting: the policy itself does, in another way.
    """
    spec = execution.policy.spec
    if spec.is_cut:
        raise UnsupportedPolicy(CUT_SHORT.format(spec.type))
    match execution:
        case Denoising() if continues_itself(execution.policy):
            execution.policy.check_continuing(settings)
            return
        case Denoising() if all(step.table is not None for step in execution.sampler.steps):
            return
    raise UnsupportedPolicy(NO_DENOISING.format(spec.type))


def _denoised(
    execution: Denoising, batch: Batch, noise: Noise, carry: Carry, follow: Continuation | None, mark: Mark
) -> tuple[Tensor, Carry]:
    execution = execution if follow is None else eagerly(execution)  # it is watched, or another policy acts
    if follow is not None and continues_itself(execution.policy):
        execution, follow = replace(execution, policy=execution.policy.continued(follow)), None
    policy = execution.policy
    context, left = execution.read(execution, batch, carry)
    mark("encode")
    shape = (len(next(iter(batch.values()))), *policy.spec.latent_shape)
    like, dtype = policy.placement.like, policy.placement.dtype
    noise = ChunkNoise(noise, execution.sampler.n_draws, shape, like)
    x, first = noise(shape, like), 0
    if carry:
        x, first = execution.begin(execution, x, carry), execution.first
    x = policy.begin(x) if continues_itself(policy) else x
    follow = None if follow is None else _widened(follow, x.shape[-1])
    memory: Memory = ()
    cache = EMPTY
    for step in execution.sampler.steps[first:]:
        if follow is None:
            out, cache = execution.call(execution, step, x.to(dtype), context, cache)
            out = out.to(x.dtype)
        else:
            out, cache = _follow(execution, step, x, context, cache, follow)
        if first and step.index == first:
            memory = presumed(execution.sampler, step, x, out)
        x, memory = step.advance(x, out, memory, noise)
    mark("denoise")
    x = x if follow is None else follow.hold(x)
    return policy.finish(x, context), {**left, LATENT: x}


def _widened(follow: Continuation, width: int) -> Continuation:
    """What chunks continue, as wide as what is denoised: numbers that a robot lacks are 0, as in training."""
    return replace(follow, actions=F.pad(follow.actions, (0, width - follow.actions.shape[-1])))


def _follow(
    execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache, follow: Continuation
) -> tuple[Tensor, Cache]:
    """What the denoiser says at one step, drawn towards what the chunk continues."""
    table = cast(StepTable, step.table)
    dtype = execution.policy.placement.dtype
    if follow.settings.jacobian == "identity":
        out, cache = execution.call(execution, step, x.to(dtype), context, cache)
        out = out.to(x.dtype)
        return follow.correct(table, out, follow.error(table, x, out)), cache
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out, cache = execution.call(execution, step, x.to(dtype), context, cache)
        out = out.to(x.dtype)
        clean = table.clean_x * x + table.clean_out * out
        error = follow.error(table, x, out).detach()
        (pulled,) = torch.autograd.grad(clean, x, error)
    cache = tree_map_only(Tensor, Tensor.detach, dict(cache))
    return follow.correct(table, out.detach(), pulled * (table.alpha + table.sigma)), cache
