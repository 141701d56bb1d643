"""lerobot's `pi05` in stages: `pi0` without a row of the state, which its prompt tells, and with adaRMS.

Every norm of the expert is modulated by the time, c = SiLU(MLP(sines(t))): scale, shift and the gate of its
branch are one linear layer of c (`policies.language.expert`). Nothing else enters them, so hoisting makes
them a table over the sampler's steps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.adapters.pi0 import Context, Rows, StagedPI0
from vivace.policies.batch import Batch


class StagedPI05(StagedPI0):
    """A pi05 as a `DenoisingPolicy` with a language stage, over its own modules."""

    def _context(self, batch: Batch, rows: list[Rows], seen: list[Tensor], position: Tensor) -> Context:
        horizon = self.spec.horizon
        every = torch.ones(horizon, horizon, dtype=torch.bool, device=position.device)
        return Context(self._kept(rows, seen, position, every))

    def _made_of(self, t: Tensor) -> Tensor:
        """Modulations (n, norms, 3 D) of times (n,)."""
        net = self.net
        c = net.time_mlp_in(self._sines(t).to(net.time_mlp_in.weight.dtype))
        c = F.silu(net.time_mlp_out(F.silu(c)))
        norms = [norm for layer in self.layers for norm in layer.norms]
        return torch.stack(
            [norm.dense(c.to(norm.dense.weight.dtype)) for norm in [*norms, self.expert.norm]], 1
        )

    def _table_of(self, t: Tensor) -> Tensor:
        return self._made_of(t)

    def _begun(self, x: Tensor, times: Tensor) -> Tensor:
        """First stream (B, H, D) of x."""
        return self.net.action_in_proj(x)

    def _modulations(self, times: Tensor) -> Sequence[tuple[Tensor, ...]]:
        return [(each,) for each in times.unbind(1)]
