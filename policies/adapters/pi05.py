"""lerobot's `pi05` in stages: `pi0` without a row of the state, which its prompt tells, and with adaRMS.

Every norm of the expert is modulated by the time, c = SiLU(MLP(sines(t))): scale, shift and the gate of its
branch are one linear layer of c (`policies.language.expert`). Nothing else enters them, so hoisting makes
them a table over the sampler's steps.

Pictures and prompt see each other, and the state is in the prompt. So what was seen is what the language
stage wrote of the pictures' rows alone, and the prompt is read anew beside them: its rows, which the actions
look at, know the state of now. Those of pictures that were seen before know the state of then.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.adapters.pi0 import Context, StagedPI0
from vivace.policies.batch import Batch
from vivace.policies.block import Runner, compute
from vivace.policies.cameras import NO_LOOKS, Looks
from vivace.policies.language.prefix import PatchSelector, Sight, keep_all


class StagedPI05(StagedPI0):
    """A pi05 as a `DenoisingPolicy` with a language stage, over its own modules."""

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Context:
        """Read pictures and prompt once; what the language layers write down."""
        return self._acting(self._read(batch, run, select)[0])

    def see(
        self,
        batch: Batch,
        run: Runner = compute,
        select: PatchSelector = keep_all,
        looks: Looks = NO_LOOKS,
    ) -> Sight:
        """Read pictures and prompt; what is written of the pictures."""
        return self.read(batch, run, select, looks)[1]

    def read(
        self,
        batch: Batch,
        run: Runner = compute,
        select: PatchSelector = keep_all,
        looks: Looks = NO_LOOKS,
    ) -> tuple[Context, Sight]:
        """What the expert looks at, and what is written of the pictures."""
        seen, prefix = self._read(batch, run, select, looks)
        return self._acting(seen), seen.without_last(prefix.is_text.shape[1])

    def renew(
        self, batch: Batch, seen: Sight, patches: Tensor, run: Runner = compute
    ) -> tuple[Context, Sight]:
        """Read some patches (B, k), and the prompt, anew; as of `RenewingPolicy`."""
        found = self._renewed(batch, seen, patches, run)
        return self._acting(found), found.without_last(found.n_rows - seen.n_rows)

    def perceive(self, batch: Batch, seen: Sight) -> Context:
        """What the expert looks at: what was written of the pictures, and the prompt, which is read anew."""
        rows = self._reader.beside(self._reader.prompt(batch, self.left_out), seen.position)
        return self._acting(self.language.renew(rows, seen))

    def _acting(self, seen: Sight) -> Context:
        """What the expert looks at: what was read."""
        horizon = self.spec.horizon
        every = torch.ones(horizon, horizon, dtype=torch.bool, device=seen.position.device)
        return Context(self._kept(seen, every))

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
