"""Greedy decoding of no more than will be executed: the policy without a chunk, if one action is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vivace.accel.decoding import Decoding
from vivace.accel.registry import register
from vivace.accel.variant import Variant
from vivace.policies.block import Runner, compute
from vivace.policies.language.decoding import Decoded, Prefix, greedy
from vivace.policies.sampling.noise import Noise


@register
@dataclass(frozen=True, kw_only=True)
class GreedyExecuted(Decoding):
    """Nothing to choose."""

    kind: ClassVar[str] = "greedy_executed"
    label: ClassVar[str] = "greedy, executed actions only"
    is_static: ClassVar[bool] = True
    reads_one_size: ClassVar[bool] = True

    @property
    def is_exact(self) -> bool:
        """What it leaves out is not executed."""
        return True

    def in_bundle(self) -> dict[str, Any]:
        """Say its kind."""
        return {"kind": self.kind}

    def n_written(self, policy: Any) -> int:
        """Tokens of the actions that will be executed."""
        return executed_tokens(policy)

    @classmethod
    def variants(cls, staged: Any, options: Any) -> Iterator[Variant]:
        """Yield the policy without a chunk."""
        yield Variant("chunk-1", "greedy, one action a time", ((cls.kind, {}),), cls.colour, n_action_steps=1)

    def __call__(
        self, policy: Any, prompt: Prefix, noise: Noise, draft: Tensor | None = None, run: Runner = compute
    ) -> Decoded:
        """Decode a chunk; what will not be executed repeats the last token of its place in an action."""
        n = executed_tokens(policy)
        found = greedy(policy, prompt, noise, draft, run, n)
        missing = policy.n_tokens - n
        last = found.tokens[:, -policy.period :]
        more = last.repeat(1, -(-missing // policy.period))[:, :missing]
        settled = torch.cat([found.settled, found.settled[:, -1:].expand(-1, missing)], dim=1)
        return Decoded(torch.cat([found.tokens, more], dim=1), found.passes, settled)


def executed_tokens(policy: Any) -> int:
    """Tokens of the actions that will be executed; all, where actions do not take as many tokens each."""
    spec = policy.spec
    if policy.n_tokens % spec.horizon:
        return policy.n_tokens
    return policy.n_tokens // spec.horizon * (spec.first_action + spec.n_action_steps)
