"""Count the floating-point operations of a policy and of a plan, by stage and block.

One multiply-add counts two. Matrix products and attention are counted (torch's own counter, attention
taken apart into its products, masks not credited); element-wise work, and so reuse and forecasts, is not.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vivace.accel.rows import Rows
from vivace.policies.block import EMPTY, Block, Cache, compute
from vivace.policies.language.prefix import LayerView, TokenSelector
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.samplers import Step
from vivace.policies.staged import Batch, Execution


@dataclass(frozen=True)
class Flops:
    """FLOPs of one chunk."""

    encode: int
    """Once a chunk: cameras, state, language stage."""
    language: int
    """Share of `encode` in the language stage: its blocks, and choosing patches inside it."""
    condition: int = 0
    """All steps."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Block id -> all steps at which it is computed."""
    rest: int = 0
    """All steps: embeddings, head, whatever is outside blocks."""
    decode: int = 0
    """All passes over action tokens, if the policy writes some; how many there are depends on the batch."""

    @property
    def denoise(self) -> int:
        """FLOPs of the denoiser over all steps."""
        return self.condition + self.rest + sum(self.blocks.values())

    @property
    def total(self) -> int:
        """FLOPs of a chunk."""
        return self.encode + self.denoise + self.decode


@dataclass(frozen=True)
class _StepFlops:
    condition: int
    blocks: dict[str, int]
    rest: int


class _Counter:
    """A runner that computes every block inside a counter of its own."""

    cache: Cache = EMPTY

    def __init__(self):
        self.blocks: dict[str, int] = defaultdict(int)

    def __call__(self, block: Block, h: Tensor, *cond: Tensor) -> Tensor:
        """Compute and count."""
        with FlopCounterMode(display=False) as counter:
            out = block.fn(h, *cond)
        self.blocks[block.id] += counter.get_total_flops()
        return out


class _CountingSelector:
    """A token selector that counts what choosing costs."""

    def __init__(self, select: TokenSelector):
        self._select, self.flops = select, 0

    def __call__(self, view: LayerView) -> Tensor | None:
        """Choose and count."""
        with FlopCounterMode(display=False) as counter:
            kept = self._select(view)
        self.flops += counter.get_total_flops()
        return kept


def count_flops(execution: Execution, batch: Batch) -> Flops:
    """Count the FLOPs of one chunk for a batch of observations (B, To, ...)."""
    policy = execution.policy
    # Outside inference mode MultiheadAttention takes the path that is made of counted operations.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        language = _Counter()
        selecting = _CountingSelector(execution.select)
        with FlopCounterMode(display=False) as counter:
            context = policy.encode(batch, language, selecting)
        read = sum(language.blocks.values()) + selecting.flops
        if execution.writes_tokens:
            with FlopCounterMode(display=False) as passes:
                noise = EpisodeNoise([(0, i) for i in range(len(context.logits))])
                execution.decoder(policy, context, noise, None, compute)
            return Flops(counter.get_total_flops(), read, decode=passes.get_total_flops())
        shape = (len(next(iter(batch.values()))), policy.spec.horizon, policy.spec.action_dim)
        x = torch.zeros(shape, dtype=policy.placement.dtype, device=policy.placement.device)
        known: dict[Any, _StepFlops] = {}  # steps differ in the shapes of their condition alone
        steps = [_count_step(execution, step, context, x, known) for step in execution.sampler.steps]
    blocks: dict[str, int] = defaultdict(int)
    rows = execution.action.rows if isinstance(execution.action, Rows) else None
    for step, found in zip(execution.sampler.steps, steps, strict=True):
        for name, flops in found.blocks.items():
            if rows is None or name in rows[step.index].fresh:
                blocks[name] += flops
    return Flops(
        encode=counter.get_total_flops(),
        language=read,
        condition=sum(step.condition for step in steps),
        blocks=dict(blocks),
        rest=sum(step.rest for step in steps),
    )


def _count_step(
    execution: Execution, step: Step, context: Any, x: Tensor, known: dict[Any, _StepFlops]
) -> _StepFlops:
    """Count one step, every block computed."""
    with FlopCounterMode(display=False) as counter:
        condition = execution.policy.condition(step, context)
    shapes = tuple(tensor.shape for tensor in tree_leaves(condition))
    key = (shapes, counter.get_total_flops())
    if key not in known:
        run = _Counter()
        with FlopCounterMode(display=False) as whole:
            execution.policy.denoise(x, condition, run)
        rest = whole.get_total_flops() - sum(run.blocks.values())
        known[key] = _StepFlops(counter.get_total_flops(), dict(run.blocks), rest)
    return known[key]
