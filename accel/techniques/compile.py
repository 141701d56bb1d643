"""Run code that `torch.compile` makes of a policy's stages: the same operations, fused and called from C++.

A chunk of one observation of a small policy costs its operations in number more than in size; a compiler
fuses those between matrix products, and calls the rest without Python in between (Ansel et al., PyTorch 2,
ASPLOS 2024; on a CPU with inductor's C++ wrapper).

What computes everything at every step is compiled whole: one graph for the denoiser, from x and the
condition, which is computed outside. Of a static schedule each distinct step is a graph of its own, where
there are a few; else each block is one, and the schedule stays in Python. Where the context of a joint
denoiser is frozen there are two or three: of all tokens, keeping the context or not, and of the action
tokens alone. Of a policy that writes tokens it is a block of them. The language stage, and what is half of
the only pass, is compiled in `encode`; an opaque policy from observation to chunk, in graphs as large as
its code allows.

The first chunk takes a minute or more. Graphs are made for one observation at a time: where many are
computed at once, counted or watched, and where a chunk continues another, what they are made of runs
(`policies.execution.eagerly`), as it does in a bundle, which ONNX Runtime compiles by itself.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from vivace.accel.decoding import Decoding as DecodingTechnique
from vivace.accel.freeze import freeze_of
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import beside_exact_work, register
from vivace.accel.rows import Row, RowRunner, Rows, schedule_of
from vivace.accel.technique import Need, Seam, Technique
from vivace.accel.variant import COMPILE, Variant
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.block import EMPTY, Block, Cache
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import (
    ActionRunner,
    Decoding,
    DenoiserCall,
    Denoising,
    Execution,
    always_compute,
    call_denoiser,
    launched,
)
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Context, DenoisingPolicy, denoises, has_language

Backend = str | Callable[..., Any]
_Graph = Callable[[Tensor, Any, dict[str, Any]], tuple[Tensor, Cache]]
"""(x, condition, what the step before left) -> the denoiser's output, what this one leaves."""
BackendName = Literal["inductor", "aot_eager", "eager"]
_GRAPHS = 8
"""Of a schedule of no more distinct steps each is compiled whole; each takes as long to make."""


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What can be chosen."""

    backend: BackendName = "inductor"
    """Of torch.compile; all but inductor compile nothing, and are there to find faults."""


@register
@dataclass(frozen=True, kw_only=True)
class Compile(CompileOptions, Technique):
    """What compiles."""

    kind: ClassVar[str] = COMPILE
    seam: ClassVar[Seam] = Seam.LAUNCH
    label: ClassVar[str] = "torch.compile"
    colour: ClassVar[str] = "#2f3640"
    needs: ClassVar[tuple[Need, ...]] = (Need.COMPILER,)
    is_static: ClassVar[bool] = True
    is_for_torch: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False
    starts_late: ClassVar[bool] = True

    Options: ClassVar[type] = CompileOptions
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"backend": "eager"}}

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    def apply(self, execution: Execution) -> Execution:
        """Compile it; raises `UnsupportedPolicy` of a plan that decides at run time what to compute."""
        return compile_execution(execution, self.backend)

    @classmethod
    def variants(cls, staged: Any, options: Any) -> list[Variant]:
        """With all exact work removed, where there is some; alone it is the baseline of every table."""
        row = beside_exact_work(cls, staged, vars(options), "exact-compile")
        return [row] if len(row.wanted) > 1 else []


def compiled(plan: AccelerationPlan) -> AccelerationPlan:
    """Return a plan that also compiles; the plan itself if it does."""
    if any(technique.kind == COMPILE for technique in plan.techniques):
        return plan
    return replace(plan, techniques=(*plan.techniques, Compile()))


def compile_execution(execution: Execution, backend: Backend = "inductor") -> Execution:
    """Return a compiled twin of an execution; the first call of each graph compiles it.

    Args:
        execution: what to compile.
        backend: torch.compile's.

    Raises:
        UnsupportedPolicy: the execution decides at run time what to compute.
    """
    compiler = _Compiler(backend, execution.policy.placement.device.type)
    match execution:
        case Decoding():
            return _compiled_decoding(execution, compiler)
        case Denoising():
            return _compiled_denoising(execution, compiler)


@dataclass(frozen=True)
class _Compiler:
    """Compiles functions for a device."""

    backend: Backend
    device: str

    def __call__(
        self, fn: Callable[..., Any], is_whole: bool = True, sizes_vary: bool = False, draws: bool = False
    ) -> Callable[..., Any]:
        """Compile a function apart from all others.

        Dynamo counts graphs by code object and gives up at a limit, which the blocks of all layers, and the
        policies of all rows of a table, would reach together: so each has a code object of its own. Where one
        reaches it, by sizes of batches or prompts, any further size runs eagerly.

        Args:
            fn: what to compile.
            is_whole: one graph, or an error; else what cannot be compiled runs eagerly in between.
            sizes_vary: one graph for any size.
            draws: it draws random numbers, which are to be those that it draws eagerly.
        """

        def own(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        own.__code__ = own.__code__.replace()
        options: dict[str, Any] | None = None
        if self.backend == "inductor":
            options = {"fallback_random": draws, "cpp_wrapper": self.device == "cpu" and not draws}
        compiled = torch.compile(
            own, fullgraph=is_whole, dynamic=sizes_vary, backend=self.backend, options=options
        )

        def either(*args: Any, **kwargs: Any) -> Any:
            try:
                return compiled(*args, **kwargs)
            except FailOnRecompileLimitHit:
                return fn(*args, **kwargs)

        return either

    def with_encode[Policy: Any](self, policy: Policy) -> Policy:
        """Return a twin whose encode is compiled, if it has a language stage or is half of the only pass."""
        twin: Any = copy.copy(policy)
        if has_language(policy) or not denoises(policy):
            twin.encode = self(policy.encode, is_whole=False)
        return twin


def _compiled_denoising(execution: Denoising, compiler: _Compiler) -> Denoising:
    """Return a twin whose denoiser is compiled, whole, step by step or block by block, and `encode`."""
    policy = execution.policy
    if isinstance(policy, OpaquePolicy):
        twin = policy.with_call(lambda fn: compiler(fn, is_whole=False, draws=True))
        return launched(execution, policy=twin)
    if freeze_of(execution) is not None:
        frozen: Any = copy.copy(policy)
        for name in ("denoise", "denoise_keeping", "denoise_alone"):
            setattr(frozen, name, compiler(getattr(policy, name)))
        return launched(execution, policy=compiler.with_encode(frozen))
    if execution.call is not call_denoiser:
        raise UnsupportedPolicy("a plan that estimates the unconditional branch linearly is not compiled")
    twin = compiler.with_encode(policy)
    if (schedule := schedule_of(execution)) is not None:
        if schedule.programs <= _GRAPHS:
            return launched(execution, policy=twin, call=_compiled_rows(policy, schedule, compiler))
        return launched(execution, policy=twin.with_blocks(_compiled_block(policy, compiler)))
    if execution.action is not always_compute:
        raise UnsupportedPolicy("only static schedules are compiled; this plan decides at run time")
    denoise = compiler(policy.denoise)

    def graph(x: Tensor, condition: Any, kept: Cache) -> tuple[Tensor, Cache]:
        return denoise(x, condition), EMPTY

    return launched(execution, policy=twin, call=_call_of(always_compute, lambda step: graph))


def _compiled_rows(policy: DenoisingPolicy, schedule: Rows, compiler: _Compiler) -> DenoiserCall:
    """Return a call of the denoiser by which each distinct step of a schedule is a graph."""

    def graph(row: Row) -> _Graph:
        def step(x: Tensor, condition: Any, kept: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
            run = RowRunner(row, kept)
            return policy.denoise(x, condition, run), dict(run.cache)

        return compiler(step)

    graphs = {row: graph(row) for row in set(schedule.rows)}
    return _call_of(schedule, lambda step: graphs[schedule.rows[step.index]])


def _call_of(action: ActionRunner, graph_of: Callable[[Step], _Graph]) -> DenoiserCall:
    """Return a call by graphs of a denoiser whose blocks are run so; otherwise it runs eagerly."""

    def compiled(
        execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        if execution.action is not action:  # somebody runs it otherwise
            return call_denoiser(execution, step, x, context, cache)
        return graph_of(step)(x, execution.policy.condition(step, context), dict(cache))

    return compiled


def _compiled_block(policy: DenoisingPolicy, compiler: _Compiler) -> Callable[[Block], Block]:
    """Return what compiles the denoiser's blocks; the others are compiled together, in encode."""

    def compiled(block: Block) -> Block:
        return replace(block, fn=compiler(block.fn)) if block.id in policy.spec.block_ids else block

    return compiled


def _compiled_decoding(execution: Decoding, compiler: _Compiler) -> Decoding:
    """Return a twin whose two bodies are compiled: reading the prefix, and a block of tokens.

    One graph reads blocks of any size where sizes vary. A graph for each of up to n sizes would take many
    minutes to compile; where there is one size only, a graph made for it is a little faster.
    """
    decoder = execution.decoder
    sizes_vary = isinstance(decoder, DecodingTechnique) and not decoder.reads_one_size
    twin: Any = compiler.with_encode(execution.policy)
    twin.extend = compiler(twin.extend, sizes_vary=sizes_vary)
    return launched(execution, policy=twin)
