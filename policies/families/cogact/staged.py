"""`cogact` in stages: vision -> `language.i.{attn,mlp}` -> cognition feature -> `action.i.{attn,mlp}`.

With classifier-free guidance the denoiser runs both branches as one batch of 2B rows, the conditional ones
first, as the original does. Hoisting computes the timestep's half of the condition token for all steps once
(at construction) and the cognition feature's half once a chunk.
"""

import copy
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.families.cogact.policy import CogACTPolicy, finish
from vivace.policies.forms import DenoisingForm, LanguageForm, policy_spec
from vivace.policies.language.llama import Reads, StagedLlama
from vivace.policies.language.prefix import PatchSelector, PrefixRows, keep_all
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing
from vivace.policies.spec import ActionKind
from vivace.policies.staged import Batch
from vivace.policies.vla.vla import LAST_LAYER

_MASK = "observation.language.attention_mask"


class StagedCogACT(LanguageForm, DenoisingForm):
    """CogACT as a `DenoisingPolicy` with a language stage, over its own modules."""

    last_read = Reads.QUERY
    dead_work: Mapping[str, str] = LAST_LAYER
    chunk_method = "sample_actions"

    def __init__(self, policy: CogACTPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        if policy.config.ensemble_horizon:
            raise UnsupportedPolicy(
                f"policy 'cogact' has ensemble_horizon={policy.config.ensemble_horizon}: its own loop "
                "executes what so many chunks vote for, which no loop here does; set ensemble_horizon to 0 "
                "in config.json"
            )
        self.policy = policy.eval()
        self.sampler = policy.sampler.on(self.placement.device)
        self.net = policy.action_model.net
        self.blocks = tuple(
            block
            for i, layer in enumerate(self.net.blocks)
            for block in (
                Block(f"action.{i}.attn", layer.attend),
                Block(f"action.{i}.mlp", layer.feed_forward),
            )
        )
        self.language = StagedLlama(policy.language)
        self.n_patches = policy.n_patches
        self.stages = {
            "vision": ("vision_backbone", "projector"),
            "language": ("language.layers",),
            "action": ("action_model.net.blocks",),
        }
        self.guided: tuple[bool, ...] = ()
        """Whether each step runs both branches; all do when empty."""
        self.spec = policy_spec(policy.config, self.blocks, action_kinds)

    @property
    def has_guidance(self) -> bool:
        """Whether the policy is sampled with classifier-free guidance at all."""
        return self.policy.config.guidance_scale > 1

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Tensor:
        """Cognition feature (B, D)."""
        prefix = PrefixRows(self.n_patches, batch[_MASK][:, 1:])
        return self.language.query(self.language(self.policy.embed(batch), prefix, run, select), prefix)

    def said(self, context: Tensor) -> Tensor:
        """Return the cognition feature (B, D)."""
        return context

    def condition(self, step: Step, context: Tensor) -> Tensor:
        """Condition tokens (2B, width), conditional rows first; (B, width) at a step without guidance."""
        z = self._both(context) if self._is_guided(step) else context
        return self.net.condition(step.t.expand(z.shape[0]), z)

    def _is_guided(self, step: Step) -> bool:
        return self.has_guidance and (step.index >= len(self.guided) or self.guided[step.index])

    def _both(self, z: Tensor) -> Tensor:
        """Features of the conditional rows and, behind them, of the rows without a condition."""
        return torch.cat([z, self.net.z_embedder.uncondition.expand_as(z)])

    def branches(self, x: Tensor, condition: Tensor, run: Runner = compute) -> tuple[Tensor, ...]:
        """Predicted noise (B, H, A) with the condition and, if there are two conditions a row, without."""
        n = condition.shape[0] // x.shape[0]
        h = self.net.embed(torch.cat([x] * n), condition)
        for block in self.blocks:
            h = through(run, block, h)
        return self.net.head(h).chunk(n)

    def guide(self, with_condition: Tensor, without: Tensor) -> Tensor:
        """Classifier-free guidance: away from the prediction without a condition."""
        return without + self.policy.config.guidance_scale * (with_condition - without)

    def denoise(self, x: Tensor, condition: Tensor, run: Runner = compute) -> Tensor:
        """Predict noise (B, H, A) in x (B, H, A), guided if there are two conditions a row."""
        predicted = self.branches(x, condition, run)
        return self.guide(*predicted) if len(predicted) == 2 else predicted[0]

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """Clip, and make the gripper's dimensions 0 or 1."""
        return finish(x, self.policy.config)

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another diffusion sampler of the same process."""
        return self.policy.resample(name, n_steps, spacing).on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> "HoistedCogACT":
        """Return a twin with the timestep's half of the condition precomputed for the sampler's steps."""
        return HoistedCogACT(self, sampler)

    def with_guidance(self, guided: tuple[bool, ...]) -> Self:
        """Return a twin that runs the branch without a condition at these steps only."""
        twin = copy.copy(self)
        twin.guided = guided
        return twin


class HoistedCogACT(StagedCogACT):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedCogACT, sampler: Sampler):
        super().__init__(plain.policy)
        self.spec, self.sampler = plain.spec, sampler
        self.language, self.guided, self.left_out = plain.language, plain.guided, plain.left_out
        with torch.no_grad():
            t = torch.stack([step.t for step in sampler.steps])
            self._time = self.net.t_embedder(t)  # (S, width)

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Tensor:
        """The cognition feature's half of the condition tokens, (2B, width) or (B, width)."""
        z = super().encode(batch, run, select)
        return self.net.z_embedder(self._both(z) if self.has_guidance else z)

    def condition(self, step: Step, context: Tensor) -> Tensor:
        """Condition tokens (2B, width), or (B, width) at a step without guidance."""
        if self.has_guidance and not self._is_guided(step):
            context = context[: len(context) // 2]
        return step.of(self._time, self.sampler) + context
