"""How a bundle's graphs make a chunk under one plan: the plan as data.

A step of denoising is a call of a graph that several plans may share. What tells plans apart comes in through
its inputs, block by block:

    fresh.B       whether block B is computed at this step; without this input it always is
    cache.B.j     what B gave when it was computed last (j = 0), and before that
    weight.B.j    of cache.B.j in the sum that stands for B; without these inputs B is cache.B.0
    new.B         output: what B gave now, empty if it was not computed

So another schedule, or forecasts in the place of reuse, are other numbers in the manifest and no other graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vivace.deploy.bundle.golden import GoldenSettings
from vivace.deploy.bundle.token_program import TokenProgram
from vivace.policies.plain_data import SELDOM, Between, Longest
from vivace.policies.sampling.step_table import StepTable

FRESH, CACHE, WEIGHT, NEW = "fresh.", "cache.", "weight.", "new."
"""Before the id of a block, in names of inputs and outputs."""
CONTEXT = "context"
"""Prefix of the names of what `encode` makes of an observation."""
SEEN = "seen."
"""Before the names of what it makes of cameras and instruction, where the rest is made apart."""
Index = Annotated[int, Between(0, 4095)]
"""Of a graph."""
Name = Annotated[str, Longest(2000)]
"""Of a tensor or a block; sums of blocks have long ones."""


@dataclass(frozen=True)
class Origin:
    """What a graph was made of; of what is made of the same there need be but one."""

    part: Literal["encode", "see", "perceive", "step", "finish", "prompt", "extend", "whole"]
    """encode, or see and perceive; step, finish; prompt, extend; or whole."""
    made_of: Annotated[str, Longest(200)]
    """Digest of the weights, and of what a plan does to this part."""
    timesteps: Annotated[tuple[float, ...], Longest(10_000)] = ()
    """Of the tables it looks up by its input "at", row by row; empty without tables."""


@dataclass(frozen=True)
class ScheduledStep:
    """One step of a sampler: a call of a graph, and what is done with its answer."""

    graph: Index
    """Index of the graph; it returns "out"."""
    table: StepTable
    at: Annotated[int, Between(0, 10_000)]
    """Row of the graph's tables."""
    weights: Mapping[Name, Annotated[tuple[float, ...], Longest(16)]] = field(default_factory=dict)
    """Block that is not computed -> weights of what was kept of it, newest first; (1,) is plain reuse."""


@dataclass(frozen=True)
class Program:
    """One plan of a bundle: which graphs it calls, and what it gives them; indices are the bundle's."""

    encode: Index
    """Graph from normalised observations to the context; of a policy of one graph to the chunk."""
    steps: Annotated[tuple[ScheduledStep, ...], Longest(10_000)] = ()
    """None of a policy that writes tokens, or is one graph."""
    finish: Index | None = None
    """Graph from the last x to normalised actions; None: x is those."""
    tokens: TokenProgram | None = None
    """How chunks are written, by a policy that writes tokens."""
    first: Annotated[int, Between(0, 10_000)] | None = field(default=None, metadata=SELDOM)
    """Step at which a chunk begins that follows another: with that chunk, shifted and noised; behind the last
    one it is that chunk. None: every chunk begins with noise."""
    perceive: Index | None = field(default=None, metadata=SELDOM)
    """Graph from what was seen, and the observations, to the context; None: `encode` gives the context."""
    looks_every: Annotated[int, Between(1, 64)] = field(default=1, metadata=SELDOM)
    """Chunks made of what was seen once, where there is a graph that perceives."""
    continues: bool = field(default=True, metadata=SELDOM)
    """Whether chunks can continue others by correcting the steps; not if the policy has a way of its own."""
    receipt: Mapping[str, Any] = field(default_factory=dict)
    """Parity with torch, fingerprint, plan: for the record."""
    golden: GoldenSettings | None = None
    """Of its golden chunk; None only while a bundle is made."""

    @property
    def is_whole(self) -> bool:
        """Whether the first graph gives the chunk."""
        return not self.steps and self.tokens is None

    @property
    def carries(self) -> bool:
        """Whether a chunk may make use of what the one before left."""
        return self.first is not None or self.looks_every > 1

    @property
    def graphs(self) -> tuple[int, ...]:
        """Indices of the graphs it calls, each once."""
        extend = None if self.tokens is None else self.tokens.extend
        found = [self.encode, self.perceive, *(step.graph for step in self.steps), self.finish, extend]
        return tuple(dict.fromkeys(index for index in found if index is not None))


def depths(inputs: Mapping[str, Any]) -> dict[str, int]:
    """Block -> how many of its outputs a graph with these inputs can read."""
    found: dict[str, int] = {}
    for name in inputs:
        if name.startswith(CACHE):
            block, _, place = name.removeprefix(CACHE).rpartition(".")
            found[block] = max(found.get(block, 0), int(place) + 1)
    return found


def cached(block: str, depth: int) -> list[str]:
    """Names of the inputs for what is kept of a block."""
    return [f"{CACHE}{block}.{j}" for j in range(depth)]


def weighed(block: str, depth: int) -> list[str]:
    """Names of the inputs for the weights of what is kept of a block."""
    return [f"{WEIGHT}{block}.{j}" for j in range(depth)]
