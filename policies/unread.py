"""Policies that do work whose result nobody reads, and can leave it out."""

from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

from typing_extensions import TypeIs

from vivace.policies.spec import PolicySpec
from vivace.policies.staged import DenoisingPolicy


@runtime_checkable
class DeadWorkPolicy(Protocol):
    """A policy, of either form, that as trained does work whose result nobody reads.

    Parts have the same name in every policy: last_layer, prompt_padding, empty_cameras, language_head,
    other_context, constants, attention_weights.
    """

    policy: Any
    spec: PolicySpec

    @property
    def dead_work(self) -> Mapping[str, str]:
        """Part -> what it is, in this policy with its settings."""

    def without(self, parts: tuple[str, ...]) -> Self:
        """Return a twin that leaves these parts out; before its blocks are replaced."""


@runtime_checkable
class CausalPolicy(DenoisingPolicy, Protocol):
    """A policy whose actions do not look at those behind them, so that the last ones of a chunk can go."""

    @property
    def is_causal(self) -> bool:
        """Whether it is so, as it is configured."""

    def with_horizon(self, horizon: int) -> Self:
        """Return a twin whose chunks are the first `horizon` actions; noise is drawn for all there were."""


def has_dead_work(policy: object) -> TypeIs[DeadWorkPolicy]:
    """Whether a policy is known to do work whose result nobody reads."""
    return isinstance(policy, DeadWorkPolicy) and bool(policy.dead_work)


def has_tail(policy: object) -> TypeIs[CausalPolicy]:
    """Whether a chunk of a policy has actions behind those executed, at which none of these looks."""
    if not isinstance(policy, CausalPolicy) or not policy.is_causal:
        return False
    spec = policy.spec
    return spec.first_action + spec.n_action_steps < spec.horizon
