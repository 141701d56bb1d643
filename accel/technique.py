"""What a technique is, what it needs of a policy, and where it attaches."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from importlib.util import find_spec
from shutil import which
from typing import Any, ClassVar, Self, cast

import numpy as np
from torch import Tensor, nn

from vivace.accel.variant import GREY, Choices, Choose, Request, Variant
from vivace.policies import execution as executions
from vivace.policies.batch import Batch, take
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Execution
from vivace.policies.language.attention import AttendingPolicy, looks_eagerly
from vivace.policies.plain_data import Between, build
from vivace.policies.seeing import has_sight, looks_apart, renews
from vivace.policies.staged import (
    LanguagePolicy,
    PolicyOfStages,
    TokenPolicy,
    VisionPolicy,
    denoises,
    has_guidance,
    has_language,
    has_stages,
    has_vision,
    runs_jointly,
    writes_tokens,
)
from vivace.policies.unread import DeadWorkPolicy, has_dead_work, has_tail


class Seam(IntEnum):
    """Where a technique attaches; plans apply them in this order, whatever order was asked for."""

    WEIGHTS = 0
    VISION = 1
    LAYERS = 2
    PATCHES = 3
    STEPS = 4
    GUIDANCE = 5
    EXACT = 6
    BLOCKS = 7
    DECODE = 8
    CARRY = 9
    LAUNCH = 10

    @property
    def holds_many(self) -> bool:
        """Whether several techniques may work on it; else two are an error."""
        return self in (Seam.WEIGHTS, Seam.EXACT, Seam.CARRY, Seam.LAUNCH)

    @property
    def fits(self) -> tuple[type, ...]:
        """Executions it is a seam of."""
        if self == Seam.DECODE:
            return (executions.Decoding,)
        if self in (Seam.STEPS, Seam.GUIDANCE, Seam.BLOCKS, Seam.CARRY):
            return (executions.Denoising,)
        return executions.Denoising, executions.Decoding

    def check(self, kind: str, execution: Execution) -> None:
        """Raise `UnsupportedPolicy` naming a technique and the policy if the execution has no such seam."""
        if not isinstance(execution, self.fits):
            need = Need.TOKENS if self == Seam.DECODE else Need.DENOISER
            raise need.refusal(execution.policy, kind)


@dataclass(frozen=True)
class CalibrationData:
    """Observations a technique is calibrated on."""

    batch: Batch
    """Normalised observations."""
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
    source: str = ""
    """Where they are from, in words, such as "8 frames of 3 episodes of lerobot/pusht"."""

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of the episodes the observations are of."""
        return frozenset(key[0] for key in self.noise_keys)

    @property
    def one(self) -> Batch:
        """The first observation alone (1, To, ...): a batch of one, as on the robot."""
        return take(self.batch, [0])

    def ones(self) -> Iterator["CalibrationData"]:
        """Return the observations one by one."""
        for i in range(len(self.noise_keys)):
            batch = take(self.batch, [i])
            draft = None if self.draft is None else self.draft[i : i + 1]
            raw = {key: value[i : i + 1] for key, value in self.raw.items()}
            yield CalibrationData(batch, self.noise_keys[i : i + 1], draft, raw)


class Part(Enum):
    """What of an execution a technique may change so that nobody after it finds it as it was."""

    CHUNK = "actions behind those executed"
    READING = "what is read of an observation"
    PATCHES = "patches where they stand"
    BRANCHES = "guidance whose branches, once left out, stay so"


class Need(Enum):
    """What a policy must have for a technique to work on it; how that is said, and how that it lacks it."""

    DENOISER = "works on denoising steps", "has none that come apart"
    LANGUAGE = "works on a language stage", "has none"
    GUIDANCE = "works on classifier-free guidance", "is sampled without"
    TOKENS = "decodes action tokens", "writes none"
    VISION = "works inside a vision tower", "has none that comes apart"
    STAGES = "runs stages in fewer bits", "names none"
    EAGER = "looks at keys by torch's own kernels", "does so, or cannot"
    CONVOLUTIONS = "rewrites convolutions over time", "has none"
    JOINT = "works on a context that runs with the actions", "has none that does"
    GATED = "cuts the gated MLPs of a language stage", "has none"
    DEAD_WORK = "leaves out work whose result nobody reads", "has none that is known"
    TAIL = "leaves out actions behind those executed", "has none, or looks at them for the others"
    SIGHT = "reads cameras apart from the state", "reads all it observes at once, or has none"
    CAMERAS = "looks at several cameras in one call", "has not several, or does so"
    GPU = "launches what a GPU computes", "is on a device that launches nothing"
    COMPILER = "runs code that is compiled here", "is on a machine without a compiler (g++; triton for a GPU)"
    RENEWAL = "reads some patches anew beside others that it kept", "keeps nothing of single patches"

    def is_met(self, policy: Any) -> bool:
        """Whether a staged policy has it."""
        return _HAS[self](policy)

    def lack(self, policy: Any) -> str:
        """Say that a staged policy lacks it."""
        works_on, lacks = self.value
        return f"{works_on}, but policy {policy.spec.type!r} {lacks}"

    def require(self, policy: Any, kind: str) -> None:
        """Raise `UnsupportedPolicy` naming the technique unless a staged policy has it."""
        if not self.is_met(policy):
            raise self.refusal(policy, kind)

    def refusal(self, policy: Any, kind: str) -> UnsupportedPolicy:
        """The error that names a technique and a staged policy that lacks it."""
        return UnsupportedPolicy(f"{kind} {self.lack(policy)}; leave it out of the plan")


def time_convolutions(policy: Any) -> dict[str, nn.Conv1d]:
    """Path in lerobot's object -> convolution over time that is called in a stage and could be a product."""
    if not has_stages(policy):
        return {}
    found = {}
    for path in (path for paths in policy.stages.values() for path in paths):
        for below, layer in policy.policy.get_submodule(path).named_modules():
            is_plain = type(layer) is nn.Conv1d and (layer.groups, layer.dilation) == (1, (1,))
            if is_plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                found[f"{path}.{below}".rstrip(".")] = layer
    return found


def has_compiler(device: str) -> bool:
    """Whether torch can compile code for a device here."""
    if device == "cuda":
        return find_spec("triton") is not None
    return which(os.environ.get("CXX", "g++")) is not None


_HAS: dict[Need, Callable[[Any], bool]] = {
    Need.DENOISER: lambda policy: bool(policy.blocks) and denoises(policy),
    Need.LANGUAGE: has_language,
    Need.GUIDANCE: has_guidance,
    Need.TOKENS: writes_tokens,
    Need.VISION: has_vision,
    Need.STAGES: has_stages,
    Need.EAGER: looks_eagerly,
    Need.CONVOLUTIONS: lambda policy: bool(time_convolutions(policy)),
    Need.JOINT: runs_jointly,
    Need.GATED: lambda policy: has_language(policy) and policy.language.has_gated_mlps,
    Need.DEAD_WORK: has_dead_work,
    Need.TAIL: has_tail,
    Need.SIGHT: has_sight,
    Need.CAMERAS: looks_apart,
    Need.RENEWAL: renews,
    Need.GPU: lambda policy: policy.placement.device.type == "cuda",
    Need.COMPILER: lambda policy: has_compiler(policy.placement.device.type),
}


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Nothing to choose."""


class Technique:
    """A technique *is* its calibrated settings: each is a frozen, JSON-able dataclass in a file of its own.

    All that is known of a technique is said in its class; tables, figures, command line, exports and contract
    tests ask the registry (`accel.registry`). What is here is what holds for most.
    """

    kind: ClassVar[str]
    """Key in acceleration.json, and group of its flags: `--accel.<kind>.<option>`."""
    seam: ClassVar[Seam]
    label: ClassVar[str]
    """What a person reads in tables."""
    colour: ClassVar[str] = GREY
    """In figures."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What a policy must have."""
    takes: ClassVar[tuple[Part, ...]] = ()
    """What it changes of an execution."""
    needs_left: ClassVar[tuple[Part, ...]] = ()
    """What it needs as it was: it goes with no technique that takes one of these."""
    is_static: ClassVar[bool]
    """No decision depends on tensor values, so it can be captured as a graph."""
    saves_flops: ClassVar[bool] = True
    """Whether there is less to compute; else the same is computed faster."""
    starts_late: ClassVar[bool] = False
    """Its first chunk takes a minute or more: bench and tune try it where their `compile` says so."""
    is_for_torch: ClassVar[bool] = False
    """It says how torch computes the very same: a bundle is made without it."""
    is_default: ClassVar[bool] = False
    """Calibrated where nobody says which techniques are wanted, if the policy has what it needs."""
    Options: ClassVar[type] = NoOptions
    """Frozen dataclass of what can be chosen before calibration, each with a default."""
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}
    """Name -> options that the contract tests run on their miniatures."""
    hidden: ClassVar[tuple[str, ...]] = ()
    """Settings too long for a person to read."""
    former_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds by which older plans name it."""
    former_flags: ClassVar[Mapping[str, str]] = {}
    """Flags of before every technique had its own, `--accel.<flag>` -> option, where the name changed."""

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> Any:
        """Build `Options` from plain data; raises `BadSetting` naming unknown ones and wrong types."""
        return build(cls.Options, cls.kind, options)

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose the settings for this policy; here they are the options, and nothing is measured.

        Raises:
            CalibrationError: there are none, or options do not fit the policy.
        """
        for need in cls.needs:
            need.require(execution.policy, cls.kind)
        return cls(**vars(cls.read_options(options)))

    def check(self, execution: Execution) -> None:
        """Raise `PlanMismatch` or `UnsupportedPolicy` if it does not fit this execution."""
        for need in self.needs:
            need.require(execution.policy, self.kind)

    def apply(self, execution: Execution) -> Execution:
        """Return the accelerated execution; the given one is unchanged."""
        raise NotImplementedError

    @property
    def is_exact(self) -> bool:
        """What is executed is what the policy as trained would execute, up to rounding."""
        return False

    @property
    def is_exportable(self) -> bool:
        """Whether a bundle can hold it."""
        return self.is_static

    @property
    def remark(self) -> str:
        """What calibration chose, where a row's label should tell it."""
        return ""

    def told(self) -> dict[str, Any]:
        """What a person is told of its settings: the options it was calibrated with, else its fields."""
        hidden = {*self.hidden, "options", "tensors"}
        options = dict(getattr(self, "options", {}))
        return options or {name: value for name, value in vars(self).items() if name not in hidden}

    def pictured(self) -> dict[str, Any]:
        """What a report draws of it: section -> plain data."""
        return {}

    @classmethod
    def variants(cls, staged: Any, options: Any) -> Iterable[Variant]:
        """Rows that it wants in the table of a policy; here itself alone, with the options given.

        Args:
            staged: a policy that has what the technique needs.
            options: `Options`, as the user wants them.
        """
        return [Variant(cls.kind, cls.label, ((cls.kind, vars(options)),), cls.colour)]

    @classmethod
    def taken(cls, options: Mapping[str, Any]) -> tuple[Part, ...]:
        """What it changes of an execution with these options (of `Options`); what it `takes`."""
        return cls.takes

    @classmethod
    def beginnings(cls, options: Mapping[str, Any], n_steps: int) -> Collection[int]:
        """Steps at which a chunk that follows another may begin under it, as far as its options tell; any.

        A technique that uses at a step what an earlier one computed says so.

        Args:
            options: plain data of its `Options`.
            n_steps: of the sampler.
        """
        return range(n_steps)

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """What is worth trying on a policy that has what it needs: option -> choices."""
        return {}

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Let a search choose options; here each of `search_space`, whatever else was chosen.

        A technique whose options depend on each other, or on the steps that it meets, says so here: no two
        ways to choose should come to the same plan, and none to a plan that is refused. A search replays the
        choices of candidates that it did not make: then an option is whatever that candidate has.

        Args:
            staged: a policy that has what the technique needs.
            before: what was chosen on earlier seams.
            choose: chooses one option.

        Returns:
            The options; None where the technique would change nothing, or be refused, and is left out.
        """
        space = cls.search_space(staged)
        return {
            option: choose(option, choices)
            for option, choices in space.items()
            if isinstance(choices, Between) or len(choices)
        }


def with_language(execution: Execution, kind: str) -> LanguagePolicy:
    """Return the execution's policy if it has a language stage; raises `UnsupportedPolicy` naming it."""
    Need.LANGUAGE.require(execution.policy, kind)
    return cast(LanguagePolicy, execution.policy)


def with_stages(execution: Execution, kind: str) -> PolicyOfStages:
    """Return the execution's policy if it says where its stages are; raises `UnsupportedPolicy`."""
    Need.STAGES.require(execution.policy, kind)
    return cast(PolicyOfStages, execution.policy)


def with_eager(execution: Execution, kind: str) -> AttendingPolicy:
    """Return the execution's policy if it looks at keys by matrix products; raises `UnsupportedPolicy`."""
    Need.EAGER.require(execution.policy, kind)
    return cast(AttendingPolicy, execution.policy)


def with_vision(execution: Execution, kind: str) -> VisionPolicy:
    """Return the execution's policy if its vision tower comes apart; raises `UnsupportedPolicy` naming it."""
    Need.VISION.require(execution.policy, kind)
    return cast(VisionPolicy, execution.policy)


def with_dead_work(execution: Execution, kind: str) -> DeadWorkPolicy:
    """Return the execution's policy if it does work that nobody reads; raises `UnsupportedPolicy`."""
    Need.DEAD_WORK.require(execution.policy, kind)
    return cast(DeadWorkPolicy, execution.policy)


def decoding(execution: Execution, kind: str) -> executions.Decoding:
    """Return the execution if its policy writes tokens; raises `UnsupportedPolicy` naming both."""
    Need.TOKENS.require(execution.policy, kind)
    return cast(executions.Decoding, execution)


def denoising(execution: Execution, kind: str) -> executions.Denoising:
    """Return the execution if its denoiser comes apart; raises `UnsupportedPolicy` naming both."""
    Need.DENOISER.require(execution.policy, kind)
    return cast(executions.Denoising, execution)


def with_tokens(execution: Execution, kind: str) -> TokenPolicy:
    """Return the policy of `decoding`."""
    return decoding(execution, kind).policy
