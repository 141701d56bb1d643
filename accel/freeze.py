"""Steps at which a joint denoiser runs its context, and those at which the action tokens run alone."""

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from vivace.policies.block import EMPTY, Cache
from vivace.policies.execution import Denoising, Execution
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Context, JointPolicy

KEPT = "kept"
"""Under which a step leaves keys and values of the context to the next ones."""
Mode = Literal["whole", "keeping", "alone"]


@dataclass(frozen=True)
class Freeze:
    """The denoiser's call of an execution whose context is frozen between some steps."""

    full: tuple[bool, ...]
    """Whether each step runs the context; the first does."""

    def mode(self, index: int) -> Mode:
        """What a step does: all tokens; the same, and keep what the next step looks at; or actions alone."""
        if not self.full[index]:
            return "alone"
        return "keeping" if index + 1 < len(self.full) and not self.full[index + 1] else "whole"

    def can_begin(self, first: int) -> bool:
        """Whether a chunk may begin at a step: what it looks at in the context is made there."""
        return self.full[first]

    def __call__(
        self, execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """Return the denoiser's output at one step, and what it leaves."""
        policy = cast(JointPolicy, execution.policy)
        condition, mode = policy.condition(step, context), self.mode(step.index)
        if mode == "alone":
            return policy.denoise_alone(x, condition, cache[KEPT]), cache
        if mode == "whole":
            return policy.denoise(x, condition), EMPTY
        out, kept = policy.denoise_keeping(x, condition)
        return out, {KEPT: kept}


def freeze_of(execution: Execution) -> Freeze | None:
    """Return when an execution runs its context; None if nothing is frozen."""
    match execution:
        case Denoising(call=Freeze() as freeze):
            return freeze
    return None
