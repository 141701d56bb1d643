"""Run a stage's matrix products in fewer bits; the rest of the policy stays in its own dtype.

Where the time is decides: of a vision-language-action model most of it is in the vision tower and in the
language layers, whose products a CPU does several times as fast in bfloat16 or in int8. Only linear layers
and convolutions are exchanged, and each gives back the dtype it was given, so norms, softmax, attention
scores and the sampler are computed as before.

    bfloat16   weights and inputs rounded, sums by the library in float32
    int8       weights rounded per output channel at load, inputs per call and tensor to 8 bits (torch's
               dynamic quantisation); linear layers alone, on a CPU

An approximation: its action error is measured like any other. A bundle has precisions of its own
(`vivace export --export.precision=…`).
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as Int8Linear
from torch.ao.quantization import per_channel_dynamic_qconfig
from torch.utils.flop_counter import register_flop_formula

from vivace.accel.registry import register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, with_stages
from vivace.accel.techniques.mlp_prune import copy_sharing_tensors
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution

OWN, INT8 = "own", "int8"
DTYPES = ("bfloat16", "float16", INT8)


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Dtype of every stage: own (as the policy computes), bfloat16, float16 or int8."""

    vision: str = "bfloat16"
    """Vision towers and what projects their patches."""
    language: str = "bfloat16"
    """Layers of the language model."""
    action: str = OWN
    """The denoiser's layers."""

    def __post_init__(self) -> None:
        """The dtypes must be known."""
        for stage, name in vars(self).items():
            if name not in (OWN, *DTYPES):
                raise BadSetting(f"precision {stage}={name!r} is unknown; choose {OWN}, {', '.join(DTYPES)}")


@register
@dataclass(frozen=True, kw_only=True)
class Precision(PrecisionOptions, Technique):
    """The options, of the stages the policy has."""

    kind: ClassVar[str] = "precision"
    seam: ClassVar[Seam] = Seam.WEIGHTS
    label: ClassVar[str] = "fewer bits"
    colour: ClassVar[str] = "#d0803a"
    needs: ClassVar[tuple[Need, ...]] = (Need.STAGES,)
    is_static: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False
    Options: ClassVar[type] = PrecisionOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "halves": {"vision": "bfloat16", "language": "bfloat16", "action": "bfloat16"}
    }

    @property
    def is_exportable(self) -> bool:
        """A bundle has precisions of its own."""
        return False

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Take what is asked for, of the stages there are; nothing is measured.

        Raises:
            BadSetting: no stage of the policy is to be changed.
        """
        policy = with_stages(execution, cls.kind)
        asked = vars(cls.read_options(options))
        chosen = {stage: name if stage in policy.stages else OWN for stage, name in asked.items()}
        if set(chosen.values()) == {OWN}:
            raise BadSetting(
                f"precision {asked} changes no stage of policy {policy.spec.type!r}; it has "
                f"{', '.join(policy.stages)}"
            )
        return cls(**chosen)

    def check(self, execution: Execution) -> None:
        """Raise if the policy lacks a stage, or its device a dtype."""
        policy = with_stages(execution, self.kind)
        lacking = [stage for stage, name in vars(self).items() if name != OWN and stage not in policy.stages]
        if lacking:
            raise PlanMismatch(
                f"precision is for stage {lacking[0]}, policy {policy.spec.type!r} has "
                f"{', '.join(policy.stages)}; recalibrate: vivace calibrate --policy.path=…"
            )
        device = policy.placement.device.type
        if INT8 in vars(self).values() and device != "cpu":
            raise PlanMismatch(
                f"precision int8 runs on a CPU, the policy is on {device}; choose bfloat16, or "
                "--policy.device=cpu"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run a twin whose stages have other layers; all other tensors are shared."""
        policy = with_stages(execution, self.kind)
        twin = copy_sharing_tensors(policy.policy)
        for stage, name in vars(self).items():
            if name != OWN:
                for path in policy.stages[stage]:
                    exchange(twin, path, name)
        narrow: Any = policy.with_weights(twin)
        return replace(execution, policy=narrow)

    @classmethod
    def variants(cls, staged: Any, options: PrecisionOptions) -> Iterator[Variant]:
        """Yield all stages in bfloat16, on a CPU in int8 too; with a language stage, each of them alone."""
        names = _offered(staged)
        everything = dict.fromkeys(vars(options), OWN)
        for name in names:
            alone = staged.stages if Need.LANGUAGE.is_met(staged) else ()
            rows = {stage: {**everything, stage: name} for stage in alone}
            rows["all"] = {**everything, **dict.fromkeys(staged.stages, name)}
            for stage, chosen in rows.items():
                label = f"{name} {'in all stages' if stage == 'all' else stage}"
                yield Variant(f"{name}-{stage}", label, ((cls.kind, chosen),), cls.colour, stage == "all")

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer every dtype that the device has for every stage."""
        dtypes = (OWN, *_offered(staged))
        found = {stage: choose(stage, dtypes) for stage in staged.stages}
        return None if set(found.values()) == {OWN} else found


def _offered(staged: Any) -> tuple[str, ...]:
    """What a policy's device computes in fewer bits."""
    return ("bfloat16", INT8) if staged.placement.device.type == "cpu" else ("bfloat16",)


class Narrow(nn.Module):
    """A layer in another dtype, which gives back the dtype it was given."""

    def __init__(self, layer: nn.Module, narrow: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.narrow = narrow
        self._dtype = dtype
        self._plain = (layer,)  # a tuple, since its weights are not this module's

    def __getattr__(self, name: str) -> Any:
        """What is read of the layer, not called, is the plain one's: its sizes, weights for tables."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_plain"][0], name)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the dtype of x."""
        out: Tensor = self.narrow(x.to(self._dtype))
        return out.to(x.dtype)


def _halved(dtype: torch.dtype) -> Callable[[nn.Module], Narrow]:
    def made(layer: nn.Module) -> Narrow:
        narrow = copy_sharing_tensors(layer)  # not `.to`, which would change the tensors that are shared
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(narrow, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        return Narrow(layer, narrow, dtype)

    return made


def _in_int8(layer: nn.Module) -> Narrow:
    twin = copy.copy(layer)  # the library reads how it is wanted off the layer
    twin.qconfig = per_channel_dynamic_qconfig  # type: ignore[assignment]
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = _engine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Narrow(layer, Int8Linear.from_float(twin), torch.float32)
    finally:
        torch.backends.quantized.engine = before


def _engine() -> str:
    """The fastest of the library's engines that this machine has; a layer keeps the one it was packed for."""
    return next(name for name in ("onednn", "x86", "fbgemm", "qnnpack") if name in _ENGINES)


_ENGINES = torch.backends.quantized.supported_engines
_LINEAR = (nn.Linear,)
_MAKERS: dict[str, tuple[tuple[type, ...], Callable[[nn.Module], Narrow]]] = {
    "bfloat16": ((*_LINEAR, nn.Conv1d, nn.Conv2d), _halved(torch.bfloat16)),
    "float16": ((*_LINEAR, nn.Conv1d, nn.Conv2d), _halved(torch.float16)),
    INT8: (_LINEAR, _in_int8),
}
"""Dtype -> the layers that are exchanged, of these very classes, and what makes one."""


_NARROW: WeakValueDictionary[tuple[int, int, str], Narrow] = WeakValueDictionary()
"""Weight, bias and dtype -> the layer made of them: plans that run together hold it once, as all weights.

It holds the plain one, so that no other tensors have their ids while it is here."""


def exchange(policy: nn.Module, path: str, name: str) -> None:
    """Put layers of a dtype in the place of those at and below a path of a policy, in place.

    What reads a layer's weights instead of calling it, as torch's own attention does, has a class of its own
    for it, which is left as it is.
    """
    kinds, make = _MAKERS[name]
    found = [below for below, module in policy.get_submodule(path).named_modules() if type(module) in kinds]
    for below in found:
        owner, _, leaf = f"{path}.{below}".rstrip(".").rpartition(".")
        layer = policy.get_submodule(owner).get_submodule(leaf)
        key = (id(layer.weight), id(layer.bias), name)
        narrow = _NARROW.get(key)
        if narrow is None:
            narrow = _NARROW[key] = make(layer)
        setattr(policy.get_submodule(owner), leaf, narrow)


@register_flop_formula(torch.ops.quantized.linear_dynamic)  # type: ignore[untyped-decorator]
def _flops(x: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """As many as of a plain layer."""
    return int(2 * math.prod(x) * out_shape[-1])


_OF_SHAPES = torch.library.Library("quantized", "IMPL", "Meta")


@torch.library.impl(_OF_SHAPES, "linear_dynamic")  # torch 2.11 has none
def _shape(x: Tensor, packed: Any, reduce_range: bool = False) -> Tensor:
    """What comes of a tensor of shapes alone."""
    return x.new_empty(*x.shape[:-1], packed.unpack()[0].shape[0])
