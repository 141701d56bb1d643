"""The staged forms of a policy: what one hands out so that it can be run faster."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor
from typing_extensions import TypeIs

from vivace.policies.batch import Batch
from vivace.policies.block import Block, Runner, compute
from vivace.policies.language.action_bins import ActionBins
from vivace.policies.language.decoding import Prefix
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.placement import Placement
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing
from vivace.policies.spec import PolicySpec
from vivace.policies.vla.siglip import StagedSiglip

Context = Any
"""What `encode` makes of an observation; known to the policy alone, a tree of tensors."""
Condition = Any
"""What the denoiser needs besides x at one step; known to the policy alone, a tree of tensors."""


class DenoisingPolicy(Protocol):
    """A diffusion or flow-matching policy taken apart into stages, over its original weights."""

    policy: Any
    """lerobot's own object."""
    spec: PolicySpec
    placement: Placement
    """Where it computes, and in what."""
    blocks: tuple[Block, ...]
    """Blocks of the denoiser in the order they run; none of a policy that is one opaque piece."""
    sampler: Sampler
    """The sampler the checkpoint asks for."""

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared.

        Every block is meant, those of a language stage too, whose ids are not among the spec's.
        """

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Context:
        """Encode observations, once a chunk.

        Args:
            batch: normalised observations.
            run: runs the blocks of the language stage, if there is one.
            select: drops patches inside it.
        """

    def condition(self, step: Step, context: Context) -> Condition:
        """Compute what depends on the timestep and the observation but not on x."""

    def denoise(self, x: Tensor, condition: Condition, run: Runner = compute) -> Tensor:
        """Predict noise, clean actions or velocity (B, *latent_shape) from x of that shape."""

    def finish(self, x: Tensor, context: Context) -> Tensor:
        """Turn the last x (B, *latent_shape) into normalised actions (B, H, A)."""

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another sampler of the same process; raises `BadSetting` when it cannot."""

    def hoist(self, sampler: Sampler) -> "DenoisingPolicy":
        """Return a twin that computes once what depends on the timestep or the observation alone."""


class LanguageStage(Protocol):
    """A language model taken apart into layers; see `policies.language.llama` and `qwen3_vl`."""

    model: Any
    """transformers' own object."""
    layers: tuple[int, ...]
    """Indices of its layers that run, ascending."""
    drops_early: bool
    """Patches that are dropped may take their keys and values of the layers before with them."""
    has_gated_mlps: bool
    """Whether a layer's MLP is a Llama's: down(act(gate(x)) * up(x))."""
    blocks: tuple[Block, ...]
    """Theirs, in the order they run."""

    @property
    def first_drop(self) -> int:
        """The first of the layers that run behind which patches may go."""


@runtime_checkable
class LanguagePolicy(Protocol):
    """A policy, of either form, whose `encode` passes through a language model.

    Techniques on layers and patches fit it.
    """

    policy: Any
    """lerobot's own object."""
    language: LanguageStage
    spec: PolicySpec
    placement: Placement

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Any:
        """Encode observations, as of `DenoisingPolicy.encode`."""

    def said(self, context: Any) -> Tensor:
        """What the language stage says at its end, of what `encode` gave: a vector (B, n) an observation."""

    @property
    def n_patches(self) -> tuple[int, ...]:
        """Patches of each camera."""

    def with_layers(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs these of its language layers only."""

    def with_branches(self, kept: tuple[int, ...]) -> Self:
        """Return a twin in which of the other language layers keys and values are left, if they are read."""

    def with_weights(self, policy: Any) -> Self:
        """Return the staged form of a twin with other weights."""


@runtime_checkable
class TokenPolicy(Protocol):
    """A policy that writes its actions as tokens, taken apart into stages, over its original weights."""

    policy: Any
    """lerobot's own object."""
    spec: PolicySpec
    placement: Placement
    """Where it computes, and in what."""
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

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block, as of `DenoisingPolicy`."""

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Prefix:
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


@runtime_checkable
class BinnedPolicy(TokenPolicy, Protocol):
    """A token policy that writes each action dimension as one of a number of bins, one token each."""

    bins: ActionBins


@runtime_checkable
class GuidedPolicy(DenoisingPolicy, Protocol):
    """A policy that knows classifier-free guidance, whose branches can be run apart."""

    guided: tuple[bool, ...]
    """Whether each step runs both branches; all do when empty."""

    @property
    def has_guidance(self) -> bool:
        """Whether it is sampled with guidance at all."""

    def branches(self, x: Tensor, condition: Condition, run: Runner = compute) -> tuple[Tensor, ...]:
        """Predict with the condition and, if the step is guided, without."""

    def guide(self, with_condition: Tensor, without: Tensor) -> Tensor:
        """Combine both predictions."""

    def with_guidance(self, guided: tuple[bool, ...]) -> Self:
        """Return a twin that runs both branches at these steps only."""


@runtime_checkable
class ContinuingPolicy(DenoisingPolicy, Protocol):
    """A policy whose chunks continue others by means of its own, such as lerobot's real-time chunking."""

    def check_continuing(self, settings: RealTimeChunking) -> None:
        """Raise `UnsupportedPolicy` if this one cannot, `BadSetting` if it cannot in this way."""

    def continued(self, follow: Continuation) -> Self:
        """Return a twin whose chunks continue these."""

    def begin(self, x: Tensor) -> Tensor:
        """Return what is denoised first (B, *latent_shape), of the noise x: x itself unless it continues."""


@runtime_checkable
class PreparedPolicy(Protocol):
    """A policy of which only its checkpoint's preprocessor knows how many patches its pictures become."""

    def prepared_by(self, preprocess: Any) -> Self:
        """Return a twin that asks this preprocessor, once it matters."""


@runtime_checkable
class VisionPolicy(Protocol):
    """A policy, of either form, whose vision tower comes apart into layers."""

    spec: PolicySpec
    placement: Placement

    @property
    def vision(self) -> StagedSiglip:
        """The tower, run once a camera."""

    def with_vision(self, vision: StagedSiglip) -> Self:
        """Return a twin with another form of its tower."""


@runtime_checkable
class PolicyOfStages(Protocol):
    """A policy, of either form, that says where in lerobot's object its stages are."""

    policy: Any
    spec: PolicySpec
    placement: Placement

    @property
    def stages(self) -> Mapping[str, tuple[str, ...]]:
        """vision, language, action -> paths of the modules in which its layers are called."""

    def with_weights(self, policy: Any) -> Self:
        """Return the staged form of a twin with other weights."""


@runtime_checkable
class DropIn(Protocol):
    """A staged policy that can make chunks in the place of a method of lerobot's own object."""

    chunk_method: str
    """Dotted name of the method of lerobot's policy that all its chunks come from."""

    def window(self, given: Batch) -> Batch:
        """What `encode` takes, (B, To, ...), of what that method is given.

        Raises:
            UnsupportedPolicy: it is given what `encode` cannot be.
        """

    def returned(self, actions: Tensor) -> Tensor:
        """What that method returns (B, n, A) of chunks (B, H, A)."""


@runtime_checkable
class JointPolicy(DenoisingPolicy, Protocol):
    """A policy whose denoiser runs action tokens and context through one stack, where each looks at all.

    What the action tokens look at in the context, its keys and values in every layer, may be kept from a step
    and stand for the context at later ones.
    """

    def denoise_keeping(
        self, x: Tensor, condition: Condition, run: Runner = compute
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `denoise`, bit for bit; and keys and values (B, C, n) of the context, one tensor a layer."""

    def denoise_alone(
        self, x: Tensor, condition: Condition, kept: tuple[Tensor, ...], run: Runner = compute
    ) -> Tensor:
        """As `denoise`, by the action tokens alone, which look at each other and at what was kept."""


StagedPolicy = DenoisingPolicy | TokenPolicy
"""A policy of either kind."""


def denoises(policy: DenoisingPolicy) -> bool:
    """Whether a policy denoises in steps that are known; else its chunk is one pass, or its own work."""
    return any(step.table is not None for step in policy.sampler.steps)


def writes_tokens(policy: object) -> TypeIs[TokenPolicy]:
    """Whether a policy writes its actions as tokens; else it denoises."""
    return isinstance(policy, TokenPolicy)


def writes_bins(policy: object) -> TypeIs[BinnedPolicy]:
    """Whether a policy writes bins of action dimensions, which can be decoded without it."""
    return isinstance(policy, BinnedPolicy)


def has_language(policy: object) -> TypeIs[LanguagePolicy]:
    """Whether a policy has a language stage."""
    return isinstance(policy, LanguagePolicy)


def has_guidance(policy: object) -> TypeIs[GuidedPolicy]:
    """Whether a policy is sampled with classifier-free guidance."""
    return isinstance(policy, GuidedPolicy) and policy.has_guidance


def runs_jointly(policy: object) -> TypeIs[JointPolicy]:
    """Whether a policy's denoiser runs its context with the action tokens."""
    return isinstance(policy, JointPolicy)


def continues_itself(policy: object) -> TypeIs[ContinuingPolicy]:
    """Whether chunks of a policy continue others by means of its own, if they do."""
    return isinstance(policy, ContinuingPolicy)


def has_vision(policy: object) -> TypeIs[VisionPolicy]:
    """Whether a policy's vision tower comes apart."""
    return isinstance(policy, VisionPolicy)


def is_prepared(policy: object) -> TypeIs[PreparedPolicy]:
    """Whether a policy is to be told its preprocessor."""
    return isinstance(policy, PreparedPolicy)


def has_stages(policy: object) -> TypeIs[PolicyOfStages]:
    """Whether a policy says where its stages are."""
    return isinstance(policy, PolicyOfStages) and bool(policy.stages)


def guided_steps(policy: object) -> tuple[bool, ...]:
    """Whether each step runs both branches of guidance; empty where all run what there is."""
    return policy.guided if isinstance(policy, GuidedPolicy) else ()
