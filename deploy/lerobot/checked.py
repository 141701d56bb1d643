"""Chunks that are held against lerobot's own on the first observation; lerobot's own stay where they differ.

The check is made again after the policy was moved, trained or given other weights.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import Technique
from vivace.deploy.lerobot.chunks import Chunks
from vivace.policies.errors import in_one_line
from vivace.policies.placement import dtype_name
from vivace.policies.spec import ChunkExecution

LOG = logging.getLogger("vivace")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def tolerance(policy: Any) -> tuple[float, str]:
    """Largest difference of a normalised action that rounding may make; a policy's coarsest dtype."""
    dtypes = {p.dtype for p in policy.parameters() if p.is_floating_point()}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return _TOLERANCE.get(coarsest, 0.0), dtype_name(coarsest)


def as_configured(plan: AccelerationPlan, policy: Any) -> AccelerationPlan:
    """Return a plan for the number of actions that lerobot executes of a chunk, which its own config says."""
    wanted, found = plan.execution.n_action_steps, getattr(policy.config, "n_action_steps", None)
    if wanted not in (None, found):
        LOG.warning("vivace: the plan was chosen for %s executed of a chunk, lerobot executes %s; "
                    "--policy.n_action_steps=%d does as the plan", wanted, found, wanted)  # fmt: skip
    return replace(plan, execution=ChunkExecution())


class CheckedChunks(Chunks):
    """Made by us as long as that is proven, else by lerobot's own method; a line of the log says which."""

    @torch.compiler.disable
    def __call__(self, batch: dict[str, Any], noise: Tensor | None = None, **said: Any) -> Tensor:
        """Normalised actions (B, n, A); arguments are lerobot's."""
        execution = self.present
        if execution is not None:
            return self.made(execution, batch, noise, **said)
        given = said if noise is None else {**said, "noise": noise}
        device = self.policy.config.device or "cpu"
        try:
            with torch.random.fork_rng([device] if device.startswith("cuda") else []):  # draws are made again
                execution = self.renewed()
                ours = self.made(execution, batch, **given)
        except Exception as error:  # lerobot's own is there, whatever went wrong here
            self._stay(f"{type(error).__name__}: {in_one_line(error)}")
            return self.original(batch, **given)
        techniques: tuple[Technique, ...] = execution.plan.techniques
        if not techniques:
            self.remove()
            return self.original(batch, **given)
        names = ", ".join(technique.kind for technique in techniques)
        approximate = [technique.kind for technique in techniques if not technique.is_exact]
        if approximate:
            LOG.info("vivace: %s runs under its plan (%s), an approximation by %s; VIVACE=off leaves it out",
                     self.policy.config.type, names, ", ".join(approximate))  # fmt: skip
            return ours
        theirs = self.original(batch, **given)
        self._judge(names, ours, theirs)
        return theirs

    def _judge(self, names: str, ours: Tensor, theirs: Tensor) -> None:
        """Tell how far our chunk is from lerobot's own of the same observation and noise."""
        allowed, dtype = tolerance(self.policy)
        if ours.shape != theirs.shape:
            self._stay(f"{names} gives a chunk of {tuple(ours.shape)} in the place of {tuple(theirs.shape)}")
            return
        found = float((ours.to(theirs) - theirs).abs().max())
        told = f"{found:.2g} from lerobot's own at most, {allowed:g} allowed ({dtype})"
        if not found <= allowed:  # not a number neither
            self._stay(f"under {names} its actions are {told}")
            return
        LOG.info("vivace: %s runs under exact work alone (%s): on this observation its actions are %s; "
                 "VIVACE=off leaves it out", self.policy.config.type, names, told)  # fmt: skip

    def _stay(self, why: str) -> None:
        self.remove()
        LOG.warning("vivace: %s stays lerobot's own: %s", self.policy.config.type, why)
