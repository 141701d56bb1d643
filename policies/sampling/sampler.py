"""A sampler: steps, each of which calls the denoiser once and moves on."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from vivace.policies.errors import PlanMismatch
from vivace.policies.sampling.noise import Noise
from vivace.policies.sampling.step_table import StepTable

Memory = tuple[Tensor, ...]
Update = Callable[[Tensor, Tensor, Memory, Noise], tuple[Tensor, Memory]]


@dataclass(frozen=True)
class Step:
    """One call of the denoiser."""

    index: int
    """Position in the order the steps are run, from 0."""
    t: Tensor
    """Timestep given to the denoiser, 0-d; of a policy's samplers on its device."""
    advance: Update = field(repr=False)
    """(x, out, memory, noise) -> (next x, next memory)."""
    table: StepTable | None = field(default=None, repr=False)
    """The same in numbers, but for rounding; None of a policy that samples by itself."""

    def of(self, table: Tensor, sampler: "Sampler") -> Tensor:
        """Look this step up in a table (S, ...) of all steps of a sampler.

        Raises:
            PlanMismatch: it is a step of another sampler, for whose times the table does not hold.
        """
        if not self.is_of(sampler):
            raise PlanMismatch(
                f"what is hoisted holds for the {len(sampler)} steps of its own sampler {sampler.name!r}, "
                "and was asked for a step of another one; hoist the policy for that sampler"
            )
        return table[self.index]

    def is_of(self, sampler: "Sampler") -> bool:
        """Whether a sampler has this very step."""
        return self.index < len(sampler) and sampler.steps[self.index] is self


@dataclass(frozen=True)
class Sampler:
    """The steps that turn noise into actions."""

    name: str
    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def beginnings(self) -> tuple[int, ...]:
        """Indices of the steps at which a chunk may begin that needs none of those before.

        Those that keep nothing of the steps before, or only what can be presumed (`presumed`); not the later
        stages of a step of RK4.
        """
        return tuple(
            index
            for index, step in enumerate(self.steps)
            if step.table is not None and (not step.table.memory or self.remembers(index) is not None)
        )

    def remembers(self, index: int) -> Literal["clean", "noise"] | None:
        """What a step remembers of those before, if that can be presumed where they were not run.

        The clean chunks they predicted, or the noise that the first of them began with.
        """
        tables = [step.table for step in self.steps[:index]]
        kept = [table.keep for table in tables if table is not None]
        if not kept or len(kept) < len(tables):
            return None
        if set(kept[-1]) == {"clean"}:
            return "clean"
        return "noise" if kept[0] == ("x",) and all(keep == ("m0",) for keep in kept[1:]) else None

    @property
    def n_draws(self) -> int:
        """Draws of noise that a chunk takes: its starting point, and one for every noisy step."""
        return 1 + sum(step.table is not None and step.table.noise != 0 for step in self.steps)

    def on(self, device: torch.device) -> "Sampler":
        """Return it with its timesteps on a device, moved there together."""
        if all(step.t.device == device for step in self.steps):
            return self
        times = torch.stack([step.t for step in self.steps]).to(device).unbind()
        return replace(
            self, steps=tuple(replace(step, t=t) for step, t in zip(self.steps, times, strict=True))
        )


def presumed(sampler: Sampler, step: Step, x: Tensor, out: Tensor) -> Memory:
    """What the first step of a chunk remembers, where its sampler has earlier ones: that they said the same.

    A multistep sampler then makes a step of first order, as at its own first one; one that goes back to the
    noise it began with takes that which x holds.

    Args:
        sampler: whose step it is.
        step: one of its `beginnings`.
        x: present sample (B, H, A).
        out: what the denoiser said of it.
    """
    table = step.table
    if table is None or not table.memory:
        return ()
    clean = table.clean_x * x + table.clean_out * out
    clean = clean if table.clip is None else clean.clamp(-table.clip, table.clip)
    if sampler.remembers(step.index) == "noise":
        return ((x - table.alpha * clean) / table.sigma,)
    return (clean,) * len(table.memory)
