"""A lerobot policy without an adapter, as one opaque stage: it runs, but has no blocks to accelerate.

Such a policy draws from torch's global generator as often as it likes, so each row is run alone under a seed
made of its own noise: the same noise key gives the same chunk, whatever else is in the batch.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.batch import take
from vivace.policies.block import Runner, compute
from vivace.policies.dtype import cast
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.forms import DenoisingForm
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN
from vivace.policies.spec import ActionKind, PolicySpec
from vivace.policies.staged import Batch


class OpaquePolicy(DenoisingForm):
    """Calls the policy's own `predict_action_chunk`, row by row."""

    blocks = ()

    def __init__(self, policy: Any, action_kinds: tuple[ActionKind, ...] = ()):
        config = policy.config
        if getattr(config, "n_obs_steps", 1) != 1:
            raise UnsupportedPolicy(
                f"policy {config.type!r} has no adapter and takes {config.n_obs_steps} observations at once; "
                "only policies of one observation run as an opaque block"
            )
        self.policy = policy.eval()
        action_dim = config.action_feature.shape[0]
        self.sampler = Sampler(
            "whole", (Step(0, torch.tensor(0), lambda x, out, memory, noise: (out, memory)),)
        )
        self.spec = PolicySpec(
            type=config.type,
            action_dim=action_dim,
            horizon=len(config.action_delta_indices or [0]),
            n_obs_steps=1,
            n_action_steps=getattr(config, "n_action_steps", 1),
            observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
            action_kinds=kinds_of_config(config, action_kinds, action_dim),
            blocks=(),
        )

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Batch:
        """Observations without the time axis, (B, ...)."""
        batch = cast(batch, self.placement.dtype)
        own = self.policy.config.input_features
        return {k: v[:, 0] if k in own else v for k, v in batch.items()}

    def condition(self, step: Step, context: Batch) -> Batch:
        """Nothing to prepare."""
        return context

    def denoise(self, x: Tensor, condition: Batch, run: Runner = compute) -> Tensor:
        """Predict actions (B, n, A), padded by repetition to (B, H, A); x is what seeds each row."""
        rows = []
        for i, seed in enumerate(_seeds(x)):
            one = take(condition, [i])
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.manual_seed(seed)
                rows.append(self.policy.predict_action_chunk(one))
        actions = torch.cat(rows)
        missing = self.spec.horizon - actions.shape[1]
        return actions if missing <= 0 else torch.cat([actions, actions[:, -1:].repeat(1, missing, 1)], 1)

    def resample(self, name: str, n_steps: int, spacing: str = OWN) -> Sampler:
        """Refuse: the loop is inside the policy."""
        raise UnsupportedPolicy(f"policy {self.spec.type!r} is opaque: its sampler cannot be changed")

    def _hoisted(self, sampler: Sampler) -> "OpaquePolicy":
        """Refuse: there are no stages."""
        raise UnsupportedPolicy(f"policy {self.spec.type!r} is opaque: nothing to hoist")


def _seeds(x: Tensor) -> list[int]:
    """A seed for each row of noise (B, H, A)."""
    return [
        int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:7])
        for row in x.detach().cpu().float().contiguous().numpy()
    ]
