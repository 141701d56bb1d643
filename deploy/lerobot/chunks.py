"""Chunks of a lerobot policy, made by us in the place of one of its own methods.

All else stays lerobot's own: queues, temporal ensembling, reset, what its methods take and return. A policy
is taken apart when the first chunk is asked for, and again when its weights, its settings or its device
have changed since: it may have been moved, trained or given other weights.
"""

import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Execution, as_trained, sample
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.staged import DropIn, continues_itself

Build = Callable[[Any], Execution]
"""lerobot's policy -> how its chunks are made."""
_TAKEN = ("inference_delay", "prev_chunk_left_over", "execution_horizon")
"""What lerobot's real-time chunking says of the chunk before."""


class Chunks:
    """Stands in the place of the method that all chunks of a lerobot policy come from.

    Args:
        policy: lerobot's own object.
        method: dotted name of the method (`DropIn.chunk_method`).
        build: makes the execution, whenever one is needed.
    """

    def __init__(self, policy: Any, method: str, build: Build):
        self.policy, self._build = policy, build
        owner, _, self._name = method.rpartition(".")
        self._owner = policy.get_submodule(owner)
        self.__wrapped__ = self.original  # so that its signature is lerobot's own, which lerobot looks at
        self._execution: Execution | None = None
        self._made_for: Any = None
        setattr(self._owner, self._name, self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the policy needs: it is taken apart anew."""
        return {**vars(self), "_execution": None, "_made_for": None}

    def remove(self) -> None:
        """Let lerobot's own method make the chunks again."""
        delattr(self._owner, self._name)

    @property
    def original(self) -> Callable[..., Tensor]:
        """What lerobot would call."""
        method: Callable[..., Tensor] = getattr(type(self._owner), self._name).__get__(self._owner)
        return method

    @torch.compiler.disable
    def __call__(self, batch: dict[str, Any], noise: Tensor | None = None, **said: Any) -> Tensor:
        """Normalised actions (B, n, A), as lerobot's own method returns them; arguments are lerobot's.

        Raises:
            UnsupportedPolicy: an argument is not known here.
        """
        return self.made(self.present or self.renewed(), batch, noise, **said)

    @property
    def present(self) -> Execution | None:
        """How chunks are made of the policy as it is now; None if it has not been taken apart since."""
        return self._execution if self._made_for == _state(self.policy) else None

    def renewed(self) -> Execution:
        """Take the policy apart as it is now."""
        check_own_layers(self.policy)
        self._execution, self._made_for = self._build(self.policy), _state(self.policy)
        return self._execution

    def made(
        self, execution: Execution, batch: dict[str, Any], noise: Tensor | None = None, **said: Any
    ) -> Tensor:
        """Make a chunk by an execution."""
        unknown = sorted(said.keys() - set(_TAKEN))
        if unknown:
            raise UnsupportedPolicy(
                f"a chunk of {self.policy.config.type!r} was asked for with {', '.join(unknown)}, known are "
                f"noise, {', '.join(_TAKEN)}; set VIVACE=off and run lerobot's own"
            )
        form: Any = execution.policy
        window = form.window(dict(batch))
        draw = GlobalNoise() if noise is None else _Given(noise)
        actions = sample(execution, window, draw, follow=self._follow(execution, **said))
        return form.returned(actions).clone()  # where lerobot is not in inference mode, neither is its chunk

    def _follow(
        self,
        execution: Execution,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Continuation | None:
        """What a chunk continues, as lerobot's `RTCProcessor` has it: zeros where nothing is left over."""
        rtc = getattr(self.policy.config, "rtc_config", None)
        if prev_chunk_left_over is None or rtc is None or not rtc.enabled:
            return None
        settings = RealTimeChunking(
            schedule=rtc.prefix_attention_schedule.value.lower(),
            execution_horizon=execution_horizon or rtc.execution_horizon,
            max_guidance_weight=rtc.max_guidance_weight,
        )
        left = prev_chunk_left_over if prev_chunk_left_over.ndim == 3 else prev_chunk_left_over[None]
        spec, place = execution.policy.spec, execution.policy.placement
        horizon, width = spec.latent_shape
        width = left.shape[-1] if continues_itself(execution.policy) else width  # the same in lerobot
        left = left[:, :horizon].to(place.device, place.wide)
        weights = settings.weights(left.shape[1], inference_delay or 0, horizon)
        known = F.pad(left, (0, width - left.shape[-1], 0, horizon - left.shape[1]))
        placed = place.move(torch.from_numpy(weights))[None, :, None]
        return Continuation(settings, known, placed.expand(len(known), -1, -1))


class _Given:
    """Noise that lerobot's caller gives for the start; whatever is drawn after it is torch's."""

    def __init__(self, first: Tensor):
        self._left: list[Tensor] = [first]
        self._more = GlobalNoise()

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the next draw."""
        return self._left.pop().to(like) if self._left else self._more(shape, like)


def drops_in(staged: Any) -> bool:
    """Whether chunks of a staged policy can be made in the place of lerobot's own; not of an opaque one."""
    return isinstance(staged, DropIn) and not as_trained(staged).is_opaque


def check_own_layers(policy: Any) -> None:
    """Raise `UnsupportedPolicy` if `peft` has put layers of its own into a policy.

    What is computed ahead of weights would pass them over.
    """
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in policy.modules()):
        raise UnsupportedPolicy(
            f"policy {policy.config.type!r} has layers of an adapter (peft) that is not merged; give "
            "vivace accelerate the adapter's checkpoint, it merges it"
        )


def _state(policy: Any) -> tuple[Any, ...]:
    """What an execution holds for: where every weight is, how often it was written, and the settings.

    What is written through `.data` torch does not count; an optimiser's steps it does.
    """
    tensors = chain(policy.parameters(), policy.buffers())
    weights = tuple((it.data_ptr(), 0 if it.is_inference() else it._version) for it in tensors)
    return weights, repr(policy.config)
