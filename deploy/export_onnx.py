"""Export a policy under its plan as graphs: one for `encode`, one for each distinct step, one to finish.

What a plan decides before anything runs (layers, patches, steps, schedules, guidance) is in the graphs and in
the manifest; what a step leaves to the next are inputs and outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vivace.accel.rows import Rows
from vivace.deploy.bundle_form import CACHE, CONTEXT, NEXT, PAST, Graph, StepProgram
from vivace.deploy.graph_writer import GraphWriter
from vivace.policies.decoding import chain
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.noise import Noise
from vivace.policies.past import Past
from vivace.policies.samplers import Step
from vivace.policies.staged import Batch, Execution, evaluate


@dataclass(frozen=True)
class DenoisingGraphs:
    """How the graphs of a denoising policy fit together; indices are those of the writer."""

    encode: int
    steps: tuple[StepProgram, ...]
    finish: int | None


def export_denoising(
    writer: GraphWriter,
    execution: Execution,
    batch: Batch,
    noise: Noise,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> DenoisingGraphs:
    """Export a denoising policy under an execution.

    Args:
        writer: where the graphs go.
        execution: the policy and how it is run.
        batch: one normalised observation.
        noise: of one chunk.
        on_step: told how many of how many steps are done.

    Raises:
        UnsupportedPolicy: it is opaque, or decides at run time what to compute.
    """
    policy = execution.policy
    if not policy.blocks:
        raise UnsupportedPolicy(f"policy {policy.spec.type!r} is opaque: it has no stages to export")
    context = policy.encode(batch, execution.language, execution.select)
    context_leaves, context_tree = pytree.tree_flatten(context)
    context_names = [f"{CONTEXT}.{i}" for i in range(len(context_leaves))]
    encode = writer.add("encode", _Encode(execution, list(batch)), batch, context_names)
    seen = dict(zip(context_names, context_leaves, strict=True))
    x = noise((1, policy.spec.horizon, policy.spec.action_dim), next(iter(batch.values())).float())
    memory: tuple[Tensor, ...] = ()
    cache: Mapping[str, Any] = {}
    programs: dict[Any, list[int]] = {}
    steps = []
    for step in execution.sampler.steps:
        if step.table is None:
            raise UnsupportedPolicy(f"sampler {execution.sampler.name!r} cannot be written as a table")
        given = _named(cache)
        out, kept = execution.evaluate(execution, step, x, context, cache)
        left = _named(kept)
        carried = _carried(given, left)
        fresh = [name for name in left if name not in carried]
        alike = programs.setdefault(_program(execution, step), [])
        graph = next((i for i in alike if _serves(writer.graphs[i], given, fresh)), None)
        if graph is None:
            module = _Step(execution, step, context_tree, len(context_leaves), dict(cache), fresh)
            at = torch.tensor(step.index)
            inputs = {"x": x, "t": step.t.float(), "at": at} | seen | given
            name = f"step-{sum(map(len, programs.values())):03d}"
            graph = writer.add(name, module, inputs, ["out", *(NEXT + entry for entry in fresh)])
            alike.append(graph)
        steps.append(StepProgram(graph, step.table, carried))
        cache = dict(kept)
        x, memory = step.advance(x, out, memory, noise)
        on_step(step.index + 1, len(execution.sampler))
    finish = None
    if policy.finish(x, context) is not x:
        finish = writer.add("finish", _Finish(execution, context_tree), {"x": x} | seen, ["actions"])
    return DenoisingGraphs(encode, tuple(steps), finish)


@dataclass(frozen=True)
class TokenGraphs:
    """The graphs of a token policy; indices are those of the writer."""

    encode: int
    extend: int


def export_tokens(writer: GraphWriter, execution: Execution, batch: Batch) -> TokenGraphs:
    """Export a token policy: the prompt with room for a chunk behind it, and reading more tokens.

    Args:
        writer: where the graphs go.
        execution: the policy and how it is run.
        batch: one normalised observation.
    """
    encode = _Prompt(execution, list(batch))
    logits, *leaves = encode(*batch.values())
    names = _past_names(len(execution.policy.language.layers))
    first = writer.add("encode", encode, batch, ["logits", *names])
    width = min(4, execution.policy.n_tokens)
    tokens = torch.full((1, width), execution.policy.action_ids[0])
    inputs = {"tokens": tokens, "kept": torch.zeros(1, dtype=torch.long)}
    inputs |= dict(zip(names, leaves, strict=True))
    fresh = [NEXT + name for name in names if name.startswith((PAST + "keys", PAST + "values"))]
    extend = writer.add("extend", _Extend(execution), inputs, ["logits", *fresh], dynamic={"tokens": 1})
    return TokenGraphs(first, extend)


def _past_names(n_layers: int) -> list[str]:
    parts = [f"{PAST}{part}.{i}" for part in ("keys", "values", "prompt") for i in range(n_layers)]
    return [*parts, PAST + "positions"]


def _program(execution: Execution, step: Step) -> Any:
    """What tells the computation of one step from that of another, but for what the cache holds."""
    guided = getattr(execution.policy, "guided", ())
    is_guided = step.index >= len(guided) or guided[step.index]
    if execution.evaluate is not evaluate:
        return step.index  # its coefficients are its own
    if not isinstance(execution.action, Rows):
        return is_guided
    return is_guided, execution.action.rows[step.index]


def _serves(graph: Graph, given: Mapping[str, Tensor], fresh: Sequence[str]) -> bool:
    """Whether a graph of the same program finds what it reads among `given`, and leaves what is wanted.

    What the cache holds beside that does not matter: sums of blocks outlive the steps that read them.
    """
    read = {name: shape for name, shape in graph.inputs.items() if name.startswith(CACHE)}
    found = {name: tuple(value.shape) for name, value in given.items()}
    return read.items() <= found.items() and set(graph.outputs) == {"out", *(NEXT + name for name in fresh)}


def _carried(given: dict[str, Tensor], left: Mapping[str, Tensor]) -> dict[str, str]:
    """Entry that a step leaves -> entry it was given and passes on unchanged."""
    names = {id(value): name for name, value in reversed(given.items())}  # the first name of each
    return {new: names[id(value)] for new, value in left.items() if id(value) in names}


def _named(cache: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leaves of a cache by name."""
    leaves, _ = pytree.tree_flatten_with_path(dict(cache))
    return {
        ".".join([CACHE, *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)]): leaf
        for path, leaf in leaves
    }


class _Traced(nn.Module):
    """A module that holds a policy's weights, so that they become tensors of the graph."""

    def __init__(self, execution: Execution):
        super().__init__()
        self.weights = getattr(execution.policy, "policy", None)
        self.execution = execution


class _Observing(_Traced):
    """A module that is given normalised observations."""

    def __init__(self, execution: Execution, keys: list[str]):
        super().__init__(execution)
        self.keys = keys

    def encoded(self, values: tuple[Tensor, ...]) -> Any:
        """What the policy makes of them."""
        run = self.execution
        return run.policy.encode(dict(zip(self.keys, values, strict=True)), run.language, run.select)


class _Encode(_Observing):
    """Normalised observations -> leaves of the context."""

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        return tuple(pytree.tree_leaves(self.encoded(values)))


@dataclass(frozen=True)
class _Asked(Step):
    """A step whose index is also an input of the graph."""

    where: Tensor = field(kw_only=True)

    @property
    def at(self) -> Tensor:
        """The input."""
        return self.where


class _Step(_Traced):
    """x, t, index, context, cache -> the denoiser's answer, fresh cache entries."""

    def __init__(
        self,
        execution: Execution,
        step: Step,
        context_tree: Any,
        n_context: int,
        cache: dict[str, Any],
        fresh: list[str],
    ):
        super().__init__(execution)
        self.step, self.context_tree, self.n_context, self.fresh = step, context_tree, n_context, fresh
        self.cache_tree = pytree.tree_structure(cache)

    def forward(self, x: Tensor, t: Tensor, at: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Evaluate."""
        context = pytree.tree_unflatten(list(leaves[: self.n_context]), self.context_tree)
        cache = pytree.tree_unflatten(list(leaves[self.n_context :]), self.cache_tree)
        step = _Asked(self.step.index, t.to(self.step.t.dtype), self.step.advance, where=at)
        out, kept = self.execution.evaluate(self.execution, step, x, context, cache)
        left = _named(kept)
        return out, *(left[name] for name in self.fresh)


class _Prompt(_Observing):
    """Normalised observations -> logits of the first token, what was read, with room for a chunk."""

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Read the prompt."""
        prompt = self.encoded(values)
        past = prompt.past.with_room(self.execution.policy.n_tokens)
        return prompt.logits, *past.keys, *past.values, *past.prompt, past.n_positions


class _Extend(_Traced):
    """Tokens in a row, how many are kept before them, what was read -> logits, keys and values."""

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Read more tokens."""
        run = self.execution
        tokens, kept, *leaves = given
        n = len(run.policy.language.layers)
        keys, values, seen = (tuple(leaves[i * n : (i + 1) * n]) for i in range(3))
        past = Past(keys, values, seen, leaves[-1], kept)
        logits, past = run.policy.extend(tokens, past, *chain(tokens.shape[1], tokens.device), run.language)
        return logits, *past.keys, *past.values


class _Finish(_Traced):
    """Last x, context -> normalised actions."""

    def __init__(self, execution: Execution, context_tree: Any):
        super().__init__(execution)
        self.context_tree = context_tree

    def forward(self, x: Tensor, *leaves: Tensor) -> tuple[Tensor]:
        """Finish."""
        context = pytree.tree_unflatten(list(leaves), self.context_tree)
        return (self.execution.policy.finish(x, context),)
