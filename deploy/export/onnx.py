"""Export denoising policies under their plans: a graph for `encode`, one for a step, one to finish.

Plans share what is made of the same. What a plan decides of the layers and patches of a language model, of
weights and of what is hoisted is in the graphs; steps, schedules, forecasts and guidance are in the manifest
(`program`). Only blocks that a plan leaves out at some step get a branch, so a plan that computes everything
runs a graph without any.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vivace.accel.freeze import KEPT, Mode, freeze_of
from vivace.accel.rows import schedule_of
from vivace.accel.technique import Seam
from vivace.accel.techniques.guidance import Linear
from vivace.accel.techniques.hoist import Hoist
from vivace.deploy.bundle.form import Graph
from vivace.deploy.bundle.program import (
    CONTEXT,
    FRESH,
    NEW,
    Origin,
    Program,
    ScheduledStep,
    cached,
    depths,
    weighed,
)
from vivace.deploy.export.branches import Branch
from vivace.deploy.export.graph_writer import GraphWriter
from vivace.deploy.export.traced import Asked, Encode, Finish, Keep, Traced, made_of
from vivace.policies.block import EMPTY, Cache
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import Denoising, always_compute, call_denoiser
from vivace.policies.sampling.noise import Noise
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.step_table import StepTable
from vivace.policies.shapes import fixed_shapes
from vivace.policies.staged import Batch, JointPolicy, guided_steps

_MOST_ROWS = 128
"""Policies of no more training timesteps have all of them in their tables, so that any steps find theirs."""
WITH, WITHOUT, NOW = "guidance.with", "guidance.without", "guidance.now"
"""What is kept of predictions, where those without a condition are estimated from earlier ones."""


@fixed_shapes()
def export_denoising(
    writer: GraphWriter,
    executions: Mapping[str, Denoising],
    batch: Batch,
    noise: Noise,
    fixed: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Program]:
    """Export a denoising policy under several plans; graphs that are there already are taken as they are.

    Args:
        writer: where the graphs go.
        executions: plan -> the policy and how it is run.
        batch: one normalised observation.
        noise: of one chunk.
        fixed: what the policy is told besides, always.

    Raises:
        UnsupportedPolicy: it decides at run time what to compute.
    """
    for execution in executions.values():
        check_steps(execution)
    timesteps = _timesteps(executions.values())
    whole = {**batch, **fixed}
    subjects = {name: _Subject.of(run, timesteps, whole, writer) for name, run in executions.items()}
    wanted = [(subject, kind) for subject in subjects.values() for kind in subject.kinds]
    programs = {}
    for name, subject in subjects.items():
        encode = writer.find(subject.encode)
        if encode is None:
            names = list(subject.context)
            encode = writer.add(subject.encode, Encode(subject.execution, list(batch), fixed), batch, names)
        graphs = {kind: _step_graph(writer, subject, kind, wanted, noise) for kind in set(subject.kinds)}
        steps = tuple(
            ScheduledStep(
                graphs[kind],
                step.table,
                subject.row(writer.graphs[graphs[kind]], step),
                subject.told(step.index),
            )
            for step, kind in zip(subject.steps, subject.kinds, strict=True)
        )
        programs[name] = Program(encode, steps, _finish(writer, subject, noise))
    return programs


@dataclass(frozen=True)
class _Kind:
    """What tells a step from those that run other graphs."""

    is_guided: bool
    """Both branches of guidance are run; so are they of a policy without guidance."""
    window: int
    """How many earlier predictions the one without a condition is estimated from; -1: it is not."""
    is_plain: bool
    """Every block is computed at every step of the plan."""
    is_weighed: bool
    """The plan forecasts."""
    mode: Mode = "whole"
    """Of a plan that freezes the context: whether it runs, and is kept."""


@dataclass(frozen=True)
class _Subject:
    """A policy under a plan."""

    execution: Denoising
    """As it is traced: its tables hold all timesteps."""
    steps: tuple[Any, ...]
    """Of the plan's sampler."""
    context: Mapping[str, Tensor]
    context_tree: Any
    timesteps: tuple[float, ...]
    """Of the rows of its tables; empty without tables."""
    encode: Origin
    digest: str
    """Of what steps are made of."""
    weights: tuple[dict[str, tuple[float, ...]], ...]
    """Of every step, as in `ScheduledStep`."""

    @classmethod
    def of(
        cls, execution: Denoising, timesteps: Mapping[float, Tensor], batch: Batch, writer: GraphWriter
    ) -> "_Subject":
        policy, steps = execution.policy, execution.sampler.steps
        hoists = any(technique.kind == Hoist.kind for technique in execution.plan.techniques)
        if hoists:
            tables = [Step(i, t, _stay) for i, t in enumerate(timesteps.values())]
            execution = replace(execution, policy=policy.hoist(Sampler("tables", tuple(tables))))
        with fixed_shapes():
            leaves, tree = pytree.tree_flatten(
                execution.policy.encode(batch, execution.language, execution.select)
            )
        context = {f"{CONTEXT}.{i}": leaf for i, leaf in enumerate(leaves)}
        shapes = [list(leaf.shape) for leaf in leaves]
        stages = (Seam.WEIGHTS, Seam.VISION, Seam.LAYERS, Seam.PATCHES, Seam.EXACT)
        return cls(
            execution,
            steps,
            context,
            tree,
            tuple(timesteps) if hoists else (),
            Origin("encode", made_of(execution, stages, writer.precision)),
            made_of(execution, (Seam.WEIGHTS, Seam.EXACT), writer.precision, shapes),
            tuple(_weights(execution, step.index) for step in steps),
        )

    @cached_property
    def kinds(self) -> tuple[_Kind, ...]:
        """Kind of every step."""
        guided = guided_steps(self.execution.policy)
        blocks = [block for weights in self.weights for block in self.reused(weights)]
        is_weighed = any(w != (1.0,) for weights in self.weights for w in self.reused(weights).values())
        windows = [len(weights.get(WITH, ())) for weights in self.weights if NOW in weights]
        freeze = freeze_of(self.execution)
        return tuple(
            _Kind(
                is_guided=index >= len(guided) or guided[index],
                window=max(windows) if NOW in weights else -1,
                is_plain=not blocks,
                is_weighed=is_weighed,
                mode="whole" if freeze is None else freeze.mode(index),
            )
            for index, weights in enumerate(self.weights)
        )

    @cached_property
    def frozen(self) -> dict[str, Tensor]:
        """Name -> example of what is kept of the context, layer by layer; none if nothing is frozen."""
        if freeze_of(self.execution) is None:
            return {}
        policy, example = cast(JointPolicy, self.execution.policy), next(iter(self.context.values()))
        x = example.new_zeros(1, *policy.spec.latent_shape, dtype=torch.float32)
        step = Asked(0, self.steps[0].t, _stay, where=torch.zeros((), dtype=torch.long, device=x.device))
        context = pytree.tree_unflatten(list(self.context.values()), self.context_tree)
        _, kept = policy.denoise_keeping(x, policy.condition(step, context))
        return {f"{KEPT}.{i}": it.contiguous() for i, it in enumerate(kept)}

    def told(self, index: int) -> dict[str, tuple[float, ...]]:
        """Weights of a step, those of what was kept of the context among them."""
        kept = self.frozen if self.kinds[index].mode == "alone" else ()
        return self.weights[index] | dict.fromkeys(kept, (1.0,))

    @staticmethod
    def reused(weights: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        """Weights of blocks."""
        return {name: value for name, value in weights.items() if name not in (NOW, WITH, WITHOUT)}

    @property
    def kept(self) -> set[str]:
        """Blocks that the plan leaves out at some step."""
        return {block for weights in self.weights for block in self.reused(weights)}

    def branches(self, kind: _Kind) -> dict[str, Branch]:
        """Blocks that the plan leaves out at some step of a kind."""
        more = not kind.is_guided and any(other.is_guided for other in self.kinds)
        depth: dict[str, int] = {}
        for weights, other in zip(self.weights, self.kinds, strict=True):
            for block, row in self.reused(weights).items() if other == kind else ():
                depth[block] = max(depth.get(block, 0), len(row))
        return {block: Branch(block, n, kind.is_weighed, more) for block, n in depth.items()}

    def row(self, graph: Graph, step: Step) -> int:
        """Row of a step in a graph's tables."""
        rows = graph.origin.timesteps
        return rows.index(_timestep(step)) if rows else 0


def check_steps(execution: Denoising) -> None:
    """Raise `UnsupportedPolicy` unless its steps can be graphs."""
    if any(step.table is None for step in execution.sampler.steps):
        raise UnsupportedPolicy(f"sampler {execution.sampler.name!r} cannot be written as a table")
    knows_blocks = execution.action is always_compute or schedule_of(execution) is not None
    knows_calls = (
        execution.call is call_denoiser or _linear(execution) is not None or freeze_of(execution) is not None
    )
    if not (knows_blocks and knows_calls):
        raise UnsupportedPolicy("the plan decides at run time what to compute, which a graph cannot")


def _linear(execution: Denoising) -> Linear | None:
    """How a plan estimates predictions without a condition; None if it does not."""
    return execution.call if isinstance(execution.call, Linear) else None


def _stay(x: Tensor, out: Tensor, memory: Any, noise: Noise) -> Any:
    raise NotImplementedError("a step of a table is not run")


def _timesteps(executions: Iterable[Denoising]) -> dict[float, Tensor]:
    """Timesteps that tables hold, ascending: all of training where they are few, and those of the plans."""
    found: dict[float, Tensor] = {}
    for execution in executions:
        found |= {_timestep(step): step.t for step in execution.sampler.steps}
        config = getattr(execution.policy.policy, "config", None)
        n = getattr(config, "num_train_timesteps", None)
        if n is not None and n <= _MOST_ROWS:
            try:
                steps = execution.policy.resample("ddpm", n).steps
            except BadSetting:  # it is no diffusion
                continue
            found |= {_timestep(step): step.t for step in steps}
    return dict(sorted(found.items()))


def _timestep(step: Step) -> float:
    """Number of a step's timestep, which itself is on the policy's device."""
    return cast(StepTable, step.table).t


def _weights(execution: Denoising, index: int) -> dict[str, tuple[float, ...]]:
    """What is not computed at a step -> weights of what was kept of it."""
    found: dict[str, tuple[float, ...]] = {}
    schedule, linear = schedule_of(execution), _linear(execution)
    if schedule is not None:
        for group in schedule.rows[index].groups:
            found |= dict.fromkeys(group.members, group.weights)
    if linear is not None and (row := linear.coefficients[index]):
        found |= {NOW: row[:1], WITH: row[1::2], WITHOUT: row[2::2]}
    return found


def _step_graph(
    writer: GraphWriter,
    subject: _Subject,
    kind: _Kind,
    wanted: Sequence[tuple[_Subject, _Kind]],
    noise: Noise,
) -> int:
    """Return the graph that serves a kind of step, made for all plans that want its like."""
    at = next(i for i, other in enumerate(subject.kinds) if other == kind)
    needed = {_timestep(s) for s, k in zip(subject.steps, subject.kinds, strict=True) if k == kind}
    is_linear = _linear(subject.execution) is not None
    frozen = [kind.mode] if kind.mode != "whole" else []
    digest = made_of(subject.execution, (), subject.digest, kind.is_guided, kind.window, is_linear, *frozen)
    origin = Origin("step", digest, tuple(sorted(needed)) if subject.timesteps else ())
    own, kept = subject.branches(kind), subject.kept
    found = writer.find(origin, lambda graph: _serves(graph, kept, own))
    if found is not None:
        return found
    alike = {id(s): s for s, k in wanted if (s.digest, k) == (subject.digest, kind)}
    branches = _merged([other.branches(kind) for other in alike.values()])
    keeps = set().union(*(other.kept for other in alike.values()))
    blocks = [block.id for block in subject.execution.policy.blocks if block.id in keeps]
    module = _Step(subject, subject.steps[at], blocks, kind)
    policy, example = subject.execution.policy, next(iter(subject.context.values()))
    x = noise((1, *policy.spec.latent_shape), example.float())
    row = subject.timesteps.index(_timestep(subject.steps[at])) if subject.timesteps else 0
    where = torch.tensor(row, device=x.device)
    inputs = {"x": x, "t": subject.steps[at].t.float(), "at": where, **subject.context}
    inputs |= module.history(x)
    outputs = ["out", *(NEW + name for name in module.keeps)]
    origin = replace(origin, timesteps=subject.timesteps)
    return writer.add(origin, module, inputs, outputs, branches=list(branches.values()))


def _merged(found: Sequence[Mapping[str, Branch]]) -> dict[str, Branch]:
    """Branches that serve several plans."""
    merged: dict[str, Branch] = {}
    for branch in (branch for branches in found for branch in branches.values()):
        known = merged.get(branch.block, branch)
        more = known.keeps_more_rows or branch.keeps_more_rows
        merged[branch.block] = replace(known, depth=max(known.depth, branch.depth), keeps_more_rows=more)
    return merged


def _serves(graph: Graph, kept: set[str], branches: Mapping[str, Branch]) -> bool:
    """Whether a graph keeps and leaves out what a plan does; without branches, if it leaves out nothing."""
    if not branches and any(name.startswith(FRESH) for name in graph.inputs):
        return False
    found = depths(graph.inputs)
    return {NEW + block for block in kept} <= graph.outputs.keys() and all(
        found.get(block, 0) >= branch.depth
        and (not branch.is_weighed or weighed(block, 1)[0] in graph.inputs)
        and (not branch.keeps_more_rows or graph.inputs[cached(block, 1)[0]][0] < 0)
        for block, branch in branches.items()
    )


def _finish(writer: GraphWriter, subject: _Subject, noise: Noise) -> int | None:
    policy, example = subject.execution.policy, next(iter(subject.context.values()))
    x = noise((1, *policy.spec.latent_shape), example.float())
    context = pytree.tree_unflatten(list(subject.context.values()), subject.context_tree)
    if policy.finish(x, context) is x:
        return None
    origin = Origin("finish", subject.digest)
    found = writer.find(origin)
    if found is not None:
        return found
    module = Finish(subject.execution, subject.context_tree)
    return writer.add(origin, module, {"x": x, **subject.context}, ["actions"])


class _Step(Traced):
    """x, t, row, context -> the denoiser's answer, and what blocks gave.

    Where predictions without a condition are estimated, weights and earlier predictions come in behind the
    context, and the present pair of predictions goes out. Where the context is frozen, what was kept of it
    comes in there.
    """

    def __init__(self, subject: _Subject, step: Step, blocks: Sequence[str], kind: _Kind):
        super().__init__(subject.execution)
        self._step, self._tree, self._n_context = step, subject.context_tree, len(subject.context)
        self._blocks, self._window, self._mode = list(blocks), kind.window, kind.mode
        self._run, self._is_linear = subject.execution, _linear(subject.execution) is not None
        self._frozen = subject.frozen
        self.keeps = [
            *blocks,
            *([WITH, WITHOUT] if self._is_linear else []),
            *(self._frozen if kind.mode == "keeping" else []),
        ]

    def history(self, like: Tensor) -> dict[str, Tensor]:
        """Examples of weights and of earlier predictions, or of what was kept of the context."""
        if self._mode == "alone":
            return {cached(name, 1)[0]: it for name, it in self._frozen.items()}
        if self._window < 0:
            return {}
        n = self._window
        names = [*weighed(NOW, 1), *weighed(WITH, n), *weighed(WITHOUT, n)]
        kept = [*cached(WITH, n), *cached(WITHOUT, n)]
        weights = {name: like.new_tensor(0.5) for name in names}  # one tensor for all would be one input
        return weights | {name: like.roll(shift, -1) for shift, name in enumerate(kept)}

    def forward(self, x: Tensor, t: Tensor, at: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Call the denoiser."""
        context = pytree.tree_unflatten(list(leaves[: self._n_context]), self._tree)
        step = Asked(self._step.index, t.to(self._step.t.dtype), self._step.advance, where=at)
        run = Keep(self._blocks)
        execution = replace(self._run, action=lambda index, cache: run)
        if self._is_linear:
            execution, cache = self._estimating(execution, leaves[self._n_context :])
            out, after = execution.call(execution, step, x, context, cache)
            return out, *(run.kept[block] for block in self._blocks), *Linear.newest(after)
        kept = {KEPT: leaves[self._n_context :]} if self._mode == "alone" else EMPTY
        out, after = execution.call(execution, step, x, context, kept)
        frozen = after[KEPT] if self._mode == "keeping" else ()
        return out, *(run.kept[block] for block in self._blocks), *frozen

    def _estimating(self, execution: Denoising, given: tuple[Tensor, ...]) -> tuple[Denoising, Cache]:
        n = self._window
        if n < 0:
            return execution, EMPTY
        now, with_condition, without = given[:1], given[1 : 1 + n], given[1 + n : 1 + 2 * n]
        pairs = list(zip(given[1 + 2 * n : 1 + 3 * n], given[1 + 3 * n :], strict=True))
        row = [*now, *(weight for pair in zip(with_condition, without, strict=True) for weight in pair)]
        return replace(execution, call=Linear({self._step.index: row})), Linear.history(pairs)
