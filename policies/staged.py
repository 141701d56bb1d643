"""The staged forms of a policy, and the two loops that run them: denoising steps, and tokens."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.block import EMPTY, Block, Cache, Runner, compute
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.language.decoding import Decoded, Decoder, Prompt, greedy
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import TokenSelector, keep_all
from vivace.policies.placement import Placement
from vivace.policies.sampling.noise import ChunkNoise, Noise
from vivace.policies.sampling.real_time_chunking import NO_DENOISING, Continuation
from vivace.policies.sampling.samplers import OWN, Sampler, Step
from vivace.policies.sampling.step_table import StepTable
from vivace.policies.spec import ActionKind, BlockInfo, PolicySpec, check_actions
from vivace.policies.stopwatch import Mark, ignore

Batch = dict[str, Tensor]
"""lerobot keys -> normalised observations (B, To, ...)."""
Context = Any
"""What `encode` makes of an observation; known to the policy alone, a tree of tensors."""
Condition = Any
"""What the denoiser needs besides x at one step; known to the policy alone, a tree of tensors."""


class DenoisingPolicy(Protocol):
    """A diffusion or flow-matching policy taken apart into stages, over its original weights."""

    spec: PolicySpec
    placement: Placement
    """Where it computes, and in what."""
    blocks: tuple[Block, ...]
    """Blocks of the denoiser in the order they run."""
    sampler: Sampler
    """The sampler the checkpoint asks for."""

    def with_blocks(self, fn: Callable[[Block], Block]) -> "DenoisingPolicy":
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared."""

    def encode(self, batch: Batch, run: Runner = compute, select: TokenSelector = keep_all) -> Context:
        """Encode observations, once a chunk.

        Args:
            batch: normalised observations.
            run: runs the blocks of the language stage, if there is one.
            select: drops patches inside it.
        """

    def condition(self, step: Step, context: Context) -> Condition:
        """Compute what depends on the timestep and the observation but not on x."""

    def denoise(self, x: Tensor, condition: Condition, run: Runner = compute) -> Tensor:
        """Predict noise, clean actions or velocity (B, H, A) from x (B, H, A)."""

    def finish(self, x: Tensor, context: Context) -> Tensor:
        """Turn the last x into normalised actions (B, H, A)."""

    def resample(self, name: str, n_steps: int, spacing: str = OWN) -> Sampler:
        """Build another sampler of the same process; raises `BadSetting` when it cannot."""

    def hoist(self, sampler: Sampler) -> "DenoisingPolicy":
        """Return a twin that computes once what depends on the timestep or the observation alone."""


class LanguagePolicy(Protocol):
    """A policy, of either form, whose `encode` passes through a language model.

    Techniques on layers and patches fit it.
    """

    policy: Any
    """lerobot's own object."""
    language: Any
    """The language stage: `layers` (indices that run), `blocks` and `model`; see `policies.language`."""
    spec: PolicySpec
    placement: Placement

    def encode(self, batch: Batch, run: Runner = compute, select: TokenSelector = keep_all) -> Any:
        """Encode observations, as of `DenoisingPolicy.encode`."""

    @property
    def n_patches(self) -> tuple[int, ...]:
        """Patches of each camera."""

    def with_layers(self, kept: tuple[int, ...]) -> "LanguagePolicy":
        """Return a twin that runs these of its language layers only."""

    def with_weights(self, policy: Any) -> "LanguagePolicy":
        """Return the staged form of a twin with other weights."""


class TokenPolicy(Protocol):
    """A policy that writes its actions as tokens, taken apart into stages, over its original weights."""

    spec: PolicySpec
    placement: Placement
    """Where it computes, and in what."""
    blocks: tuple[()]
    """Blocks of a denoiser: none."""
    n_tokens: int
    """Tokens of a chunk."""
    period: int
    """Tokens of one action, if every action takes as many; else 1."""
    action_ids: range
    """Ids that actions are written in."""
    vocabulary: int
    """Ids there are, from 0."""
    end_token: int | None
    """Id that ends a chunk before its n tokens are written, if there is one; zeros follow it."""

    def encode(self, batch: Batch, run: Runner = compute, select: TokenSelector = keep_all) -> Prompt:
        """Read observation and instruction, once a chunk; arguments as of `DenoisingPolicy.encode`."""

    def extend(
        self, tokens: Tensor, past: Past, tree: Tensor, depth: Tensor, run: Runner = compute
    ) -> tuple[Tensor, Past]:
        """Read T tokens (B, T) at once; return logits (B, T, V) of what follows each, and the past.

        Args:
            tokens: what is read.
            past: what was read before, with room.
            tree: which of the T tokens each of them sees (B or 1, T, T), itself included.
            depth: how far behind the last kept token each of them stands (B or 1, T), from 0.
            run: runs the blocks of the language stage.
        """

    def tokenize(self, actions: Tensor) -> Tensor:
        """Tokens (B, n) of normalised actions (B, H, A)."""

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Normalised actions (B, H, A) of tokens (B, n)."""


class GuidedPolicy(DenoisingPolicy, Protocol):
    """A policy under classifier-free guidance, whose branches can be run apart."""

    @property
    def has_guidance(self) -> bool:
        """Whether it is sampled with guidance at all."""

    def branches(self, x: Tensor, condition: Condition, run: Runner = compute) -> tuple[Tensor, ...]:
        """Predict with the condition and, if the step is guided, without."""

    def guide(self, with_condition: Tensor, without: Tensor) -> Tensor:
        """Combine both predictions."""

    def with_guidance(self, guided: tuple[bool, ...]) -> "GuidedPolicy":
        """Return a twin that runs both branches at these steps only."""


def policy_spec(
    config: Any, blocks: Sequence[Block], action_kinds: tuple[ActionKind, ...] = ()
) -> PolicySpec:
    """Read a policy's spec from its lerobot config; what its actions mean as of `kinds_of_config`."""
    action_dim = config.action_feature.shape[0]
    return PolicySpec(
        type=config.type,
        action_dim=action_dim,
        horizon=config.horizon,
        n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
        observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
        action_kinds=kinds_of_config(config, action_kinds, action_dim),
        blocks=tuple(BlockInfo(block.id, block.additive) for block in blocks),
        control_hz=getattr(config, "control_hz", None),
    )


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
    shape = (len(next(iter(batch.values()))), policy.spec.horizon, policy.spec.action_dim)
    like, dtype = policy.placement.like, policy.placement.dtype
    noise = ChunkNoise(noise, execution.sampler.n_draws, shape, like)
    x = noise(shape, like)
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
    dtype = execution.policy.placement.dtype
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
