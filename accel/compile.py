"""`torch.compile` applied to an execution: the baseline every speed claim has to stand beside.

A policy that computes everything at every step is compiled whole (one graph for the denoiser); an opaque one
from observation to chunk, with graphs as large as its code allows. Under a
static schedule each distinct step would be a graph of its own, which does not pay when every block has its
own schedule (dozens of programs); then each block is compiled instead, and the schedule stays in Python.
Where the context of a joint denoiser is frozen there are two or three graphs: of all tokens, keeping the
context or not, and of the action tokens alone.
The condition is computed outside the graph, so a step enters it as tensors only.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vivace.accel.decoding import Decoding as DecodingTechnique
from vivace.accel.freeze import freeze_of
from vivace.accel.rows import schedule_of
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.block import EMPTY, Block, Cache
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Decoding, Denoising, Execution, always_compute, call_denoiser
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Context, denoises, has_language


def compile_execution(execution: Execution, backend: str | Callable[..., Any] = "inductor") -> Execution:
    """Return a compiled twin of an execution; the first call of each graph compiles it.

    Args:
        execution: what to compile.
        backend: torch.compile's.

    Raises:
        UnsupportedPolicy: the execution decides at run time what to compute.
    """
    match execution:
        case Decoding():
            return _compiled_decoding(execution, backend)
        case Denoising():
            return _compiled_denoising(execution, backend)


def _compiled_denoising(execution: Denoising, backend: str | Callable[..., Any]) -> Denoising:
    """Return a twin whose denoiser is compiled, whole or block by block, and its language stage."""
    policy = execution.policy
    if isinstance(policy, OpaquePolicy):
        return replace(execution, policy=policy.with_call(lambda fn: _compiled_call(fn, backend)))
    if freeze_of(execution) is not None:
        frozen: Any = copy.copy(policy)
        for name in ("denoise", "denoise_keeping", "denoise_alone"):
            setattr(frozen, name, _compiled(getattr(policy, name), backend))
        return replace(execution, policy=_with_compiled_encode(frozen, backend))
    if execution.call is not call_denoiser:
        raise UnsupportedPolicy("a plan that estimates the unconditional branch linearly is not compiled")
    if schedule_of(execution) is not None:

        def compiled_block(block: Block) -> Block:
            is_ours = block.id in policy.spec.block_ids  # the others are compiled together, in encode
            return replace(block, fn=_compiled(block.fn, backend)) if is_ours else block

        twin = policy.with_blocks(compiled_block)
        return replace(execution, policy=_with_compiled_encode(twin, backend))
    if execution.action is not always_compute:
        raise UnsupportedPolicy("only static schedules are compiled; this plan decides at run time")
    denoise = _compiled(policy.denoise, backend)

    def compiled(
        execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        return denoise(x, execution.policy.condition(step, context)), EMPTY

    return replace(execution, policy=_with_compiled_encode(policy, backend), call=compiled)


def _compiled_call(fn: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """Compile what an opaque policy is asked by; what it draws itself stays what it is eagerly."""
    options = {"fallback_random": True} if backend == "inductor" else None
    return _compiled(fn, backend, is_whole=False, options=options)


def _compiled_decoding(execution: Decoding, backend: str | Callable[..., Any]) -> Decoding:
    """Return a twin whose two bodies are compiled: reading the prefix, and a block of tokens.

    One graph reads blocks of any size where sizes vary. A graph for each of up to n sizes would take many
    minutes to compile; where there is one size only, a graph made for it is a little faster.
    """
    decoder = execution.decoder
    sizes_vary = isinstance(decoder, DecodingTechnique) and not decoder.reads_one_size
    twin: Any = _with_compiled_encode(execution.policy, backend)
    twin.extend = _compiled(twin.extend, backend, sizes_vary=sizes_vary)
    return replace(execution, policy=twin)


def _compiled(
    fn: Callable[..., Any],
    backend: str | Callable[..., Any],
    is_whole: bool = True,
    sizes_vary: bool = False,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a function apart from all others.

    Dynamo counts graphs by code object and gives up at a limit, which the blocks of all layers, and the
    policies of all rows of a table, would reach together: so each has a code object of its own.

    Args:
        fn: what to compile.
        backend: torch.compile's.
        is_whole: one graph, or an error; else what cannot be compiled runs eagerly in between.
        sizes_vary: one graph for any size.
        options: the backend's.
    """

    def own(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    own.__code__ = own.__code__.replace()
    return torch.compile(own, fullgraph=is_whole, dynamic=sizes_vary, backend=backend, options=options)


def _with_compiled_encode[Policy: Any](policy: Policy, backend: str | Callable[..., Any]) -> Policy:
    """Return a twin whose encode is compiled, if it has a language stage or is half of the only pass."""
    twin: Any = copy.copy(policy)
    if has_language(policy) or not denoises(policy):
        twin.encode = _compiled(policy.encode, backend, is_whole=False)
    return twin
