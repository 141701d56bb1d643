"""`torch.compile` applied to an execution: the baseline every speed claim has to stand beside.

A policy that computes everything at every step is compiled whole (one graph for the denoiser). Under a
static schedule each distinct step would be a graph of its own, which does not pay when every block has its
own schedule (dozens of programs); then each block is compiled instead, and the schedule stays in Python.
The condition is computed outside the graph, so a step enters it as tensors only.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vivace.accel.rows import Rows
from vivace.accel.technique import Decoding
from vivace.policies.block import EMPTY, Block, Cache
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.samplers import Step
from vivace.policies.staged import Context, DenoisingPolicy, Execution, always_compute, evaluate


def compile_execution(execution: Execution) -> Execution:
    """Return a compiled twin of an execution; the first call of each graph compiles it.

    Raises:
        UnsupportedPolicy: the execution decides at run time what to compute.
    """
    if execution.writes_tokens:
        sizes_vary = isinstance(execution.decoder, Decoding) and not execution.decoder.reads_one_size
        return replace(execution, policy=_with_compiled_passes(execution.policy, sizes_vary))
    if not execution.policy.blocks:
        raise UnsupportedPolicy(f"policy {execution.policy.spec.type!r} is opaque: nothing to compile")
    if execution.evaluate is not evaluate:
        raise UnsupportedPolicy("a plan that estimates the unconditional branch linearly is not compiled")
    _allow_graphs(len(execution.policy.blocks))
    if execution.action is always_compute:
        denoise = torch.compile(execution.policy.denoise, fullgraph=True, dynamic=False)

        def compiled(
            execution: Execution, step: Step, x: Tensor, context: Context, cache: Cache
        ) -> tuple[Tensor, Cache]:
            return denoise(x, execution.policy.condition(step, context)), EMPTY

        return replace(execution, policy=_with_compiled_encode(execution.policy), evaluate=compiled)
    if not isinstance(execution.action, Rows):
        raise UnsupportedPolicy("only static schedules are compiled; this plan decides at run time")
    twin = _with_compiled_encode(_with_compiled_blocks(execution.policy))
    return replace(execution, policy=twin)


def _allow_graphs(n_blocks: int) -> None:
    """Raise Dynamo's limit: blocks of all layers share one code object, and are counted as recompilations."""
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, n_blocks + 8)


def _with_compiled_blocks(policy: DenoisingPolicy) -> DenoisingPolicy:
    """Return a twin whose blocks are compiled one by one; weights are shared."""
    twin = copy.copy(policy)
    twin.blocks = tuple(
        Block(block.id, torch.compile(block.fn, fullgraph=True, dynamic=False), block.additive)
        for block in policy.blocks
    )
    return twin


def _with_compiled_passes(policy: Any, sizes_vary: bool) -> Any:
    """Return a twin whose two bodies are compiled: reading the prompt, and a block of tokens.

    One graph reads blocks of any size where sizes vary. A graph for each of up to n sizes would take many
    minutes to compile; where there is one size only, a graph made for it is a little faster.
    """
    _allow_graphs(policy.n_tokens)
    twin = copy.copy(policy)
    twin.encode = torch.compile(policy.encode, dynamic=False)
    twin.extend = torch.compile(policy.extend, dynamic=sizes_vary)
    return twin


def _with_compiled_encode(policy: DenoisingPolicy) -> DenoisingPolicy:
    """Return a twin whose encode is compiled, if it has a language stage."""
    if not hasattr(policy, "language"):
        return policy
    twin: Any = copy.copy(policy)
    twin.encode = torch.compile(policy.encode, dynamic=False)
    return twin
