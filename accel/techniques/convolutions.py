"""Compute convolutions over time as matrix products where that is faster on this device; no approximation.

    y[o, t] = sum over c, j of W[o, c, j] x[c, s t + j]   is   W as (O, C k), times windows of x (C k, T)

Of a batch of one and a handful of time steps, as in a U-Net over actions, a CPU's library for convolutions
spends most of its time on bringing the weights to an order of its own, at every call; a matrix product takes
them as they are. Equal up to rounding (1e-5).

Calibration times every convolution both ways, on inputs of the size it is given, and keeps the product where
it is faster. What was measured is in the plan: on another device it is as right, and may be slower. A bundle
is made without it, since its runtime has convolutions of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from vivace.accel.in_turn import least_ms
from vivace.accel.registry import beside_exact_work, exact_work, register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, time_convolutions, with_stages
from vivace.accel.techniques.mlp_prune import copy_sharing_tensors
from vivace.accel.variant import Variant
from vivace.policies.errors import PlanMismatch
from vivace.policies.execution import Denoising, Execution, sample
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.staged import PolicyOfStages

_REPEATS = 5
_GAIN = 0.9
"""A product that takes more than this share of the convolution's time is no gain."""


@dataclass(frozen=True, kw_only=True)
class ConvolutionsOptions:
    """Which of them."""

    measure: bool = True
    """Rewrite those alone that are measured to be faster so on this device; else all."""


@register
@dataclass(frozen=True, kw_only=True)
class Convolutions(Technique):
    """The convolutions that are rewritten, and what was measured of all."""

    kind: ClassVar[str] = "convolutions"
    seam: ClassVar[Seam] = Seam.WEIGHTS
    label: ClassVar[str] = "convolutions as matrix products"
    colour: ClassVar[str] = "#4f6d8f"
    needs: ClassVar[tuple[Need, ...]] = (Need.STAGES, Need.CONVOLUTIONS)
    is_static: ClassVar[bool] = True
    is_for_torch: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False
    Options: ClassVar[type] = ConvolutionsOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}, "all": {"measure": False}}
    hidden: ClassVar[tuple[str, ...]] = ("names", "measured_ms")

    names: tuple[str, ...]
    """Paths of the rewritten ones in the policy."""
    device: str
    """Where they were timed."""
    measured_ms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Convolution and size of its input -> time [ms] of the convolution, and of the product."""

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    @property
    def remark(self) -> str:
        """How many."""
        return f"{len(self.names)} rewritten"

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Time every convolution both ways; keep what is faster."""
        policy = with_stages(execution, cls.kind)
        Need.CONVOLUTIONS.require(execution.policy, cls.kind)
        known = time_convolutions(policy)
        device = policy.placement.device
        if not cls.read_options(options).measure:
            return cls(names=tuple(known), device=str(device))
        inputs = _inputs(execution, data)
        measured: dict[str, tuple[float, float]] = {}
        names = []
        for name, x in inputs.items():
            conv = known[name]
            what = f"{conv} of {tuple(x.shape)}"
            if what not in measured:
                measured[what] = _timed(conv, x)
            if measured[what][1] < _GAIN * measured[what][0]:
                names.append(name)
        return cls(names=tuple(names), device=str(device), measured_ms=measured)

    def check(self, execution: Execution) -> None:
        """Raise if the policy has none, or not these."""
        super().check(execution)
        known = time_convolutions(execution.policy)
        lacking = [name for name in self.names if name not in known]
        if lacking:
            raise PlanMismatch(
                f"convolutions rewrites {lacking[0]!r}, this policy has {', '.join(known)}; recalibrate: "
                "vivace calibrate --policy.path=…"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run a twin in which they are products; all tensors are shared."""
        return _with_layers(execution, {name: MatrixConv1d for name in self.names})

    @classmethod
    def variants(cls, staged: Any, options: ConvolutionsOptions) -> Iterable[Variant]:
        """Itself, and with all exact work removed."""
        yield Variant(cls.kind, cls.label, ((cls.kind, vars(options)),), cls.colour)
        if exact_work(staged):
            yield beside_exact_work(cls, staged, vars(options), f"exact+{cls.kind}")


class MatrixConv1d(nn.Module):
    """A convolution over time as a matrix product, with the same weights."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._size, self._stride, self._padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, T)."""
        padded = F.pad(x, (self._padding, self._padding))
        windows = padded.unfold(2, self._size, self._stride)  # (B, C, T', k)
        rows = windows.transpose(1, 2).flatten(2)  # (B, T', C k)
        return F.linear(rows, self.weight.flatten(1), self.bias).transpose(1, 2)


class _Watch(nn.Module):
    """A convolution that notes what it is given, under a name."""

    def __init__(self, conv: nn.Conv1d, name: str, seen: dict[str, Tensor]):
        super().__init__()
        self.conv, self._name, self._seen = conv, name, seen

    def forward(self, x: Tensor) -> Tensor:
        """Note, and convolve."""
        self._seen[self._name] = x.clone()
        return self.conv(x)


def _inputs(execution: Execution, data: CalibrationData) -> dict[str, Tensor]:
    """Name of a convolution -> what it is given for one observation, at the first step."""
    seen: dict[str, Tensor] = {}
    names = time_convolutions(execution.policy)
    watched = _with_layers(execution, {name: partial(_Watch, name=name, seen=seen) for name in names})
    match watched:
        case Denoising():
            first = replace(watched.sampler, steps=watched.sampler.steps[:1])
            watched = replace(watched, sampler=first)
    one = next(data.ones())
    sample(watched, one.batch, EpisodeNoise(one.noise_keys), one.draft)
    return seen


def _timed(conv: nn.Conv1d, x: Tensor) -> tuple[float, float]:
    """Least time [ms] of a convolution, and of the product."""
    as_is, product = least_ms(x.device, _REPEATS, partial(conv, x), partial(MatrixConv1d(conv), x))
    return as_is, product


def _with_layers(execution: Execution, others: Mapping[str, Callable[[nn.Conv1d], nn.Module]]) -> Execution:
    """Run a twin of the policy in which others stand for some of its layers; all tensors are shared."""
    policy: PolicyOfStages = with_stages(execution, Convolutions.kind)
    twin = copy_sharing_tensors(policy.policy)
    for name, make in others.items():
        owner, _, leaf = name.rpartition(".")
        layer: Any = twin.get_submodule(name)
        setattr(twin.get_submodule(owner), leaf, make(layer))
    rewritten: Any = policy.with_weights(twin)
    return replace(execution, policy=rewritten)
