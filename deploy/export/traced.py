"""Modules that a policy's stages are traced as, and what tells graphs of the same stage apart."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vivace.accel.technique import Seam
from vivace.policies.block import EMPTY, Block
from vivace.policies.execution import Denoising, Execution
from vivace.policies.plain_data import plain
from vivace.policies.sampling.sampler import Sampler, Step


class Traced(nn.Module):
    """A module that holds a policy's weights, so that they become tensors of the graph."""

    def __init__(self, execution: Execution):
        super().__init__()
        self.weights = execution.policy.policy
        self.execution = execution


class Observing(Traced):
    """A module that is given normalised observations."""

    def __init__(self, execution: Execution, keys: list[str], fixed: Mapping[str, Tensor] | None = None):
        super().__init__(execution)
        self.keys, self.fixed = keys, dict(fixed or {})

    def encoded(self, values: tuple[Tensor, ...]) -> Any:
        """What the policy makes of them."""
        run = self.execution
        batch = {**dict(zip(self.keys, values, strict=True)), **self.fixed}
        return run.policy.encode(batch, run.language, run.select)


class Encode(Observing):
    """Normalised observations -> leaves of the context."""

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        return tuple(pytree.tree_leaves(self.encoded(values)))


class Finish(Traced):
    """Last x, context -> normalised actions."""

    def __init__(self, execution: Denoising, context_tree: Any):
        super().__init__(execution)
        self.policy, self.context_tree = execution.policy, context_tree

    def forward(self, x: Tensor, *leaves: Tensor) -> tuple[Tensor]:
        """Finish."""
        context = pytree.tree_unflatten(list(leaves), self.context_tree)
        return (self.policy.finish(x, context),)


@dataclass(frozen=True)
class Asked(Step):
    """A step whose row in tables is an input of the graph."""

    where: Tensor = field(kw_only=True)

    def of(self, table: Tensor, sampler: Sampler) -> Tensor:
        """Look it up by the input."""
        return table.index_select(0, self.where.view(1)).squeeze(0)

    def is_of(self, sampler: Sampler) -> bool:
        """Whoever calls the graph gives the row of its own timestep."""
        return True


class Keep:
    """Compute every block, and keep what some of them give."""

    cache = EMPTY

    def __init__(self, blocks: Sequence[str]) -> None:
        self._blocks = blocks
        self.kept: dict[str, Tensor] = {}

    def __call__(self, block: Block, h: Tensor, *cond: Tensor) -> Tensor:
        """Compute."""
        out = block.fn(h, *cond)
        if block.id in self._blocks:
            self.kept[block.id] = out
        return out


def made_of(execution: Execution, seams: Sequence[Seam], *others: Any) -> str:
    """Digest of what a graph is made of: the policy, what a plan does on these seams, and plain data."""
    plan = execution.plan
    techniques = [technique for technique in plan.techniques if technique.seam in seams]
    settings = [
        {
            "kind": technique.kind,
            **{k: v for k, v in vars(technique).items() if k not in ("tensors", "options")},
        }
        for technique in techniques
    ]
    found = hashlib.sha256(json.dumps([plain(plan.fingerprint), settings, others], default=str).encode())
    for technique in techniques:
        for name, tensor in sorted(getattr(technique, "tensors", {}).items()):
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
