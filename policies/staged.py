"""The staged forms of a policy: what one hands out so that it can be run faster."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.block import Block, Runner, compute
from vivace.policies.language.decoding import Prompt
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import TokenSelector, keep_all
from vivace.policies.sampling.samplers import OWN, Sampler, Step
from vivace.policies.spec import ActionKind, BlockInfo, PolicySpec

Batch = dict[str, Tensor]
"""lerobot keys -> normalised observations (B, To, ...)."""
Context = Any
"""What `encode` makes of an observation; known to the policy alone, a tree of tensors."""
Condition = Any
"""What the denoiser needs besides x at one step; known to the policy alone, a tree of tensors."""


class DenoisingPolicy(Protocol):
    """A diffusion or flow-matching policy taken apart into stages, over its original weights."""

    spec: PolicySpec
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
