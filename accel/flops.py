"""Count the floating-point operations of a policy and of a plan, by stage and block.

One multiply-add counts two. Matrix products and attention are counted (torch's own counter, attention
taken apart into its products, masks not credited); element-wise work, and so reuse and forecasts, is not.
"""

import copy
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vivace.accel.freeze import freeze_of
from vivace.accel.rows import schedule_of
from vivace.accel.shapes import VALUES_ARE_ASKED_FOR, ShapesAlone, without_values
from vivace.policies.block import Block, compute
from vivace.policies.carry import NOTHING
from vivace.policies.execution import Decoding, Denoising, Execution, eagerly
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import LayerView, PatchSelector, Survivors
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Batch, Context, StagedPolicy, TokenPolicy, has_language


@dataclass(frozen=True)
class Flops:
    """FLOPs of one chunk.

    Where chunks make use of those before, of one that follows others (steady state), the mean of as many as
    it takes until the work repeats.
    """

    encode: int = 0
    """Once a chunk: cameras, state, language stage."""
    language: int = 0
    """Share of `encode` in the language stage: its blocks, and choosing patches inside it."""
    condition: int = 0
    """All steps."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Block id -> all steps at which it is computed."""
    rest: int = 0
    """All steps: embeddings, head, whatever is outside blocks."""
    decode: int = 0
    """All passes over action tokens, if the policy writes some; how many there are depends on the batch."""
    passes: float = 1.0
    """Passes through the network that wait for each other: steps, or passes over action tokens."""

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


class _Counts:
    """A twin of a policy that counts the FLOPs of its blocks, and what it has counted."""

    def __init__(self, policy: StagedPolicy):
        self.blocks: dict[str, int] = {}
        self.policy = policy.with_blocks(self._counted)

    def _counted(self, block: Block) -> Block:
        def fn(*args: Tensor) -> Tensor:
            with FlopCounterMode(display=False) as counter:
                out = block.fn(*args)
            self.blocks[block.id] = self.blocks.get(block.id, 0) + counter.get_total_flops()
            return out

        return replace(block, fn=fn)

    def read(self) -> int:
        """Return what was counted in the language stage since the last time."""
        language = {block.id for block in self.policy.language.blocks} if has_language(self.policy) else ()
        return sum(flops for name, flops in self.take().items() if name in language)

    def take(self) -> dict[str, int]:
        """Return what was counted since the last time: block id -> FLOPs."""
        found, self.blocks = self.blocks, {}
        return found


class _Passes:
    """A twin of a policy that counts its passes over tokens, and what they cost.

    A pass costs what its sizes say, which stay the same from pass to pass (`Past`): one of each is counted.
    """

    def __init__(self, policy: TokenPolicy):
        self.flops = 0
        self._known: dict[Any, int] = {}
        self._extend = policy.extend
        twin: Any = copy.copy(policy)
        twin.extend = self._counted
        self.policy = twin

    def _counted(self, tokens: Tensor, past: Past, tree: Tensor, *others: Any) -> tuple[Tensor, Past]:
        size = tokens.shape, tree.shape, tuple(keys.shape for keys in past.keys)
        if size in self._known:
            out = self._extend(tokens, past, tree, *others)
        else:
            with FlopCounterMode(display=False) as counter:
                out = self._extend(tokens, past, tree, *others)
            self._known[size] = counter.get_total_flops()
        self.flops += self._known[size]
        return out


class _CountingSelector:
    """A patch selector that counts what choosing costs."""

    def __init__(self, select: PatchSelector):
        self._select, self.flops = select, 0

    def __call__(self, view: LayerView) -> Tensor | Survivors | None:
        """Choose and count."""
        with FlopCounterMode(display=False) as counter:
            kept = self._select(view)
        self.flops += counter.get_total_flops()
        return kept


def count_flops(execution: Execution, batch: Batch) -> Flops:
    """Count the FLOPs of one chunk for a batch of observations (B, To, ...)."""
    execution = eagerly(execution)
    # Outside inference mode MultiheadAttention takes the path that is made of counted operations.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        counts = _Counts(execution.policy)
        selecting = _CountingSelector(execution.select)
        match execution:
            case Decoding():
                with FlopCounterMode(display=False) as counter:
                    context = counts.policy.encode(batch, compute, selecting)
                read = counts.read() + selecting.flops
                passes = _Passes(execution.policy)
                noise = EpisodeNoise([(0, i) for i in range(len(context.logits))])
                decoded = execution.decoder(passes.policy, context, noise, None, compute)
                return Flops(
                    counter.get_total_flops(),
                    read,
                    decode=passes.flops,
                    passes=float(decoded.passes.float().mean()),
                )
            case Denoising():
                twin: Any = counts.policy
                reading = replace(execution, policy=twin, language=compute, select=selecting)
                carry, cycle = NOTHING, execution.cycle
                with FlopCounterMode(display=False) as counter:
                    for _ in range(cycle):
                        context, carry = execution.read(reading, batch, carry)
                read = counts.read() + selecting.flops
                return replace(
                    _count_steps(execution, counts, batch, context),
                    encode=counter.get_total_flops() // cycle,
                    language=read // cycle,
                )


def count_by_shapes(execution: Execution, batch: Batch) -> Flops:
    """Return `count_flops` without computing what is counted; what goes by values is run after all.

    Of a miniature this takes longer, for torch does as much about an operation that it does not run: eight
    times as long where tokens are written one by one. Of one whose chunk takes seconds it is nearly free.
    """
    try:
        with ShapesAlone():
            return count_flops(execution, without_values(batch))
    except VALUES_ARE_ASKED_FOR:
        return count_flops(execution, batch)


def _count_steps(execution: Denoising, counts: _Counts, batch: Batch, context: Context) -> Flops:
    """Count the steps alone."""
    policy, rows = execution.policy, len(next(iter(batch.values())))
    placement = policy.placement
    x = torch.zeros(rows, *policy.spec.latent_shape, dtype=placement.dtype, device=placement.device)
    known: dict[Any, _StepFlops] = {}  # steps differ in the shapes of their condition alone
    run, freeze = execution.sampler.steps[execution.first :], freeze_of(execution)
    steps = [
        _count_step(
            counts, step, context, x, known, freeze is not None and freeze.mode(step.index) == "alone"
        )
        for step in run
    ]
    blocks: dict[str, int] = defaultdict(int)
    schedule = schedule_of(execution)
    for step, found in zip(run, steps, strict=True):
        for name, flops in found.blocks.items():
            if schedule is None or name in schedule.rows[step.index].fresh:
                blocks[name] += flops
    return Flops(
        condition=sum(step.condition for step in steps),
        blocks=dict(blocks),
        rest=sum(step.rest for step in steps),
        passes=len(steps),
    )


def _count_step(
    counts: _Counts, step: Step, context: Context, x: Tensor, known: dict[Any, _StepFlops], is_alone: bool
) -> _StepFlops:
    """Count one step, every block computed, or the action tokens alone of what runs its context with them."""
    policy: Any = counts.policy
    with FlopCounterMode(display=False) as counter:
        condition = policy.condition(step, context)
    shapes = tuple(tensor.shape for tensor in tree_leaves(condition))
    key = (shapes, counter.get_total_flops(), is_alone)
    if key not in known:
        kept = policy.denoise_keeping(x, condition)[1] if is_alone else ()
        counts.take()
        with FlopCounterMode(display=False) as whole:
            policy.denoise_alone(x, condition, kept) if is_alone else policy.denoise(x, condition)
        blocks = counts.take()
        known[key] = _StepFlops(
            counter.get_total_flops(), blocks, whole.get_total_flops() - sum(blocks.values())
        )
    return known[key]
