"""Count the floating-point operations of a policy and of a plan, by stage and block.

One multiply-add counts two. Matrix products and attention are counted (torch's own counter, attention
taken apart into its products, masks not credited); element-wise work, and so reuse and forecasts, is not.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vivace.accel.rows import Rows
from vivace.policies.block import EMPTY, Block, Cache
from vivace.policies.staged import Batch, Execution


@dataclass(frozen=True)
class Flops:
    """FLOPs of one chunk."""

    encode: int
    """Once a chunk."""
    condition: int
    """Once a step."""
    blocks: dict[str, int]
    """Block id -> once a step at which it is computed."""
    rest: int
    """Once a step: embeddings, head, whatever is outside blocks."""
    steps: int
    computed: dict[str, int]
    """Block id -> number of steps at which it is computed."""

    @property
    def denoise(self) -> int:
        """FLOPs of the denoiser over all steps."""
        per_step = self.steps * (self.condition + self.rest)
        return per_step + sum(self.blocks[name] * n for name, n in self.computed.items())

    @property
    def total(self) -> int:
        """FLOPs of a chunk."""
        return self.encode + self.denoise


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


def count_flops(execution: Execution, batch: Batch) -> Flops:
    """Count the FLOPs of one chunk for a batch of observations (B, To, ...)."""
    policy, steps = execution.policy, execution.sampler.steps
    # Outside inference mode MultiheadAttention takes the path that is made of counted operations.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            context = policy.encode(batch, execution.language, execution.select)
        encode = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            condition_value = policy.condition(steps[0], context)
        condition = counter.get_total_flops()
        like = next(value for value in batch.values() if value.is_floating_point())
        x = torch.zeros(like.shape[0], policy.spec.horizon, policy.spec.action_dim).to(like)
        run = _Counter()
        with FlopCounterMode(display=False) as counter:
            policy.denoise(x, condition_value, run)
        rest = counter.get_total_flops() - sum(run.blocks.values())
    n = len(steps)
    computed = dict.fromkeys(run.blocks, n)
    if isinstance(execution.action, Rows):
        computed = {name: sum(name in row.fresh for row in execution.action.rows) for name in run.blocks}
    return Flops(encode, condition, dict(run.blocks), rest, n, computed)
