"""What a technique is, where it attaches, and the list of known ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from importlib import import_module
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vivace.policies import execution as executions
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import Execution
from vivace.policies.language.decoding import Decoder
from vivace.policies.plain_data import build
from vivace.policies.staged import LanguagePolicy, TokenPolicy, has_language


class Seam(IntEnum):
    """Where a technique attaches; plans apply them in this order, whatever order was asked for."""

    WEIGHTS = 0
    LAYERS = 1
    TOKENS = 2
    STEPS = 3
    GUIDANCE = 4
    HOIST = 5
    BLOCKS = 6
    DECODE = 7

    @property
    def fits(self) -> tuple[type, ...]:
        """Executions it is a seam of."""
        if self in (Seam.WEIGHTS, Seam.LAYERS, Seam.TOKENS):
            return executions.Denoising, executions.Decoding
        return (executions.Decoding,) if self == Seam.DECODE else (executions.Denoising,)

    def check(self, kind: str, execution: Execution) -> None:
        """Raise `UnsupportedPolicy` naming a technique and the policy if the execution has no such seam."""
        if isinstance(execution, self.fits):
            return
        lack = (
            "decodes action tokens, but policy {!r} writes none"
            if self == Seam.DECODE
            else "works on denoising steps, but policy {!r} writes tokens"
        )
        raise UnsupportedPolicy(f"{kind} {lack.format(execution.policy.spec.type)}; leave it out of the plan")


@dataclass(frozen=True)
class CalibrationData:
    """Observations a technique is calibrated on."""

    batch: dict[str, Tensor]
    """lerobot keys -> normalised observations (B, To, ...)."""
    noise_keys: tuple[tuple[int, ...], ...]
    """One key per row, naming its noise stream (`EpisodeNoise`): the episode's seed, and which inference."""
    draft: Tensor | None = None
    """Of a policy that writes tokens: those the chunks before mean (B, n), -1 where nothing is known."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The same observations as the control loop gives them to `Session.predict`: keys -> (B, To, ...) in the
    robot's units, images HWC uint8, "action.previous" (B, n, A), and "task", one text a row; empty where only
    prepared ones are known."""
    largest_step: np.ndarray | None = None
    """Largest change of the executed action between two ticks of the episodes they are of (A,), in the
    robot's units; None where that was not looked at."""

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of the episodes the observations are of."""
        return frozenset(key[0] for key in self.noise_keys)

    @property
    def one(self) -> dict[str, Tensor]:
        """The first observation alone (1, To, ...): a batch of one, as on the robot."""
        return {key: value[:1] for key, value in self.batch.items()}

    def ones(self) -> Iterator["CalibrationData"]:
        """Return the observations one by one."""
        for i in range(len(self.noise_keys)):
            batch = {key: value[i : i + 1] for key, value in self.batch.items()}
            draft = None if self.draft is None else self.draft[i : i + 1]
            raw = {key: value[i : i + 1] for key, value in self.raw.items()}
            yield CalibrationData(batch, self.noise_keys[i : i + 1], draft, raw)


@runtime_checkable
class Technique(Protocol):
    """A technique *is* its calibrated settings: a frozen, JSON-able dataclass."""

    kind: ClassVar[str]
    """Key in acceleration.json, e.g. "block_cache"."""
    seam: ClassVar[Seam]
    is_static: ClassVar[bool]
    """No decision depends on tensor values, so it can be exported and captured as a graph."""

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: dict[str, Any]) -> Self:
        """Choose the settings for this policy; raises `CalibrationError`."""

    def check(self, execution: Execution) -> None:
        """Raise `PlanMismatch` or `UnsupportedPolicy` if it does not fit this execution."""

    def apply(self, execution: Execution) -> Execution:
        """Return the accelerated execution; the given one is unchanged."""


_MODULES = {
    "mlp_prune": "vivace.accel.techniques.mlp_prune:MlpPrune",
    "layer_skip": "vivace.accel.techniques.layer_skip:LayerSkip",
    "token_select": "vivace.accel.techniques.patch_select:TokenSelect",
    "step_schedule": "vivace.accel.techniques.step_schedule:StepSchedule",
    "guidance": "vivace.accel.techniques.guidance:Guidance",
    "hoist": "vivace.accel.techniques.hoist:Hoist",
    "block_cache": "vivace.accel.techniques.block_cache:BlockCache",
    "forecast": "vivace.accel.techniques.forecast:Forecast",
    "greedy_executed": "vivace.accel.techniques.greedy:GreedyExecuted",
    "jacobi": "vivace.accel.techniques.jacobi:Jacobi",
    "sjd": "vivace.accel.techniques.sjd:Sjd",
    "token_recycling": "vivace.accel.techniques.token_recycling:TokenRecycling",
    "stand": "vivace.accel.techniques.stand:Stand",
}
"""Kind -> class. Adding a technique is one file and one line here."""

TECHNIQUES = tuple(_MODULES)
"""Known kinds, in the order of their seams."""


def technique_class(kind: str) -> type[Technique]:
    """Return the class of a technique by kind; raises `BadSetting` naming the known ones."""
    if kind not in _MODULES:
        raise BadSetting(f"unknown technique {kind!r}; known techniques: {', '.join(TECHNIQUES)}")
    module, name = _MODULES[kind].split(":")
    return getattr(import_module(module), name)


def read_options[T](options_class: type[T], kind: str, options: dict[str, Any]) -> T:
    """Build an options dataclass from a dict; raises `BadSetting` naming unknown keys and wrong types."""
    return build(options_class, kind, options)


def with_language(execution: Execution, kind: str) -> LanguagePolicy:
    """Return the execution's policy if it has a language stage; raises `UnsupportedPolicy` naming it."""
    policy = execution.policy
    if not has_language(policy):
        raise UnsupportedPolicy(
            f"{kind} works on a language stage, but policy {policy.spec.type!r} has none; leave it "
            "out of the plan"
        )
    return policy


def decoding(execution: Execution, kind: str) -> executions.Decoding:
    """Return the execution if its policy writes tokens; raises `UnsupportedPolicy` naming both."""
    Seam.DECODE.check(kind, execution)
    return cast(executions.Decoding, execution)


def denoising(execution: Execution, kind: str) -> executions.Denoising:
    """Return the execution if its policy denoises; raises `UnsupportedPolicy` naming both."""
    Seam.STEPS.check(kind, execution)
    return cast(executions.Denoising, execution)


def with_tokens(execution: Execution, kind: str) -> TokenPolicy:
    """Return the policy of `decoding`."""
    return decoding(execution, kind).policy


def is_ascending(numbers: Sequence[int]) -> bool:
    """Whether each number is above the one before it."""
    return all(a < b for a, b in zip(numbers, numbers[1:], strict=False))


def check_tensors(
    kind: str,
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]],
) -> None:
    """Raise `PlanMismatch` unless a technique's tensors are the needed ones, and finite.

    Args:
        kind: of the technique.
        tensors: name -> tensor.
        needed: name -> dtype and shape; None where any size above 0 will do.
    """
    if tensors.keys() != needed.keys():
        raise PlanMismatch(
            f"{kind} has tensors {sorted(tensors)}, needed are {sorted(needed)}; copy "
            "acceleration.safetensors beside the plan, or recalibrate: vivace calibrate --policy.path=…"
        )
    for name, (dtype, shape) in needed.items():
        found = tensors[name]
        sizes = zip(found.shape, shape, strict=False)
        fits = len(found.shape) == len(shape) and all(n > 0 if m is None else n == m for n, m in sizes)
        if found.dtype != dtype or not fits or not found.isfinite().all():
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise PlanMismatch(
                f"{kind} has a tensor {name!r} of {found.dtype} {tuple(found.shape)}; this policy needs "
                f"finite {dtype} ({wanted}); recalibrate: vivace calibrate --policy.path=…"
            )


class Decoding:
    """What techniques that decode tokens share: their fields are their options, and they are the decoder."""

    kind: ClassVar[str]
    seam: ClassVar[Seam] = Seam.DECODE
    is_static: ClassVar[bool] = False

    @property
    def reads_one_size(self) -> bool:
        """Whether every pass reads as many tokens as the last: one compiled graph then serves them all."""
        return False

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: dict[str, Any]) -> Self:
        """Nothing is measured."""
        with_tokens(execution, cls.kind)
        return read_options(cls, cls.kind, options)

    def check(self, execution: Execution) -> None:
        """Raise if the policy writes no tokens."""
        with_tokens(execution, self.kind)

    def apply(self, execution: Execution) -> Execution:
        """Decode so."""
        return replace(decoding(execution, self.kind), decoder=cast(Decoder, self))
