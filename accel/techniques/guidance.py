"""Give up the unconditional branch of classifier-free guidance where it says nothing new (arXiv 2312.12487).

Adaptive guidance: from the first step on at which both branches agree, the conditional one alone is run.
LinearAG: at every other step the unconditional prediction is a linear combination of earlier ones,

    eps_u(k) ≈ sum_i b_i eps_c(i) + sum_j g_j eps_u(j),      i <= k, j < k,

with coefficients fitted by least squares on calibration samples.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.accel.registry import register
from vivace.accel.technique import CalibrationData, Need, Part, Seam, Technique, denoising
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.block import Cache
from vivace.policies.dtype import wide
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Denoising, Execution, sample
from vivace.policies.plain_data import Between
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Context, GuidedPolicy

StepKind = Literal["full", "conditional", "linear"]
FULL: StepKind = "full"
CONDITIONAL: StepKind = "conditional"
LINEAR: StepKind = "linear"
_KEY = "guidance"
"""Where earlier predictions wait in the cache."""


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """How steps are chosen."""

    method: str = "adaptive"
    """adaptive, or linear."""
    threshold: float = 0.99
    """adaptive: cosine similarity of the two branches from which on they agree."""
    full_steps: int | None = None
    """First steps that run both branches; if None, by the threshold, or half of them for linear."""
    window: int = 2
    """linear: how many earlier steps are combined."""

    def __post_init__(self) -> None:
        """Choices must be known and in range."""
        if self.method not in ("adaptive", "linear") or self.window < 1 or not -1 <= self.threshold <= 1:
            raise BadSetting(
                f"guidance method {self.method!r}, window {self.window}, threshold {self.threshold}; needed: "
                "adaptive or linear, window >= 1, threshold in [-1, 1]"
            )


@register
@dataclass(frozen=True, kw_only=True)
class Guidance(Technique):
    """What each step does about the unconditional branch."""

    kind: ClassVar[str] = "guidance"
    seam: ClassVar[Seam] = Seam.GUIDANCE
    label: ClassVar[str] = "adaptive guidance"
    colour: ClassVar[str] = "#0b8f7d"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.GUIDANCE)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = GuidanceOptions
    hidden: ClassVar[tuple[str, ...]] = ("steps", "coefficients", "agreement")
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adaptive": {"full_steps": 4},
        "linear": {"method": "linear"},
    }
    former_flags: ClassVar[Mapping[str, str]] = {"guidance": "method"}

    steps: tuple[StepKind, ...]
    """full, conditional or linear, for every step of the sampler."""
    coefficients: tuple[tuple[float, ...], ...] = ()
    """linear: of each step, for eps_c now, then eps_c and eps_u of earlier steps, newest first."""
    agreement: tuple[float, ...] = ()
    """Cosine similarity of the branches at each step, as calibrated."""
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Record both branches over a sample; options are the fields of `GuidanceOptions`."""
        chosen = cls.read_options(options)
        _guided(execution)
        execution = denoising(execution, cls.kind)
        n = len(execution.sampler)
        if chosen.full_steps is not None and not 1 <= chosen.full_steps <= n:
            raise BadSetting(f"guidance full_steps={chosen.full_steps}; the sampler runs {n}: choose 1..{n}")
        record = _Record()
        sample(replace(execution, call=record), data.batch, EpisodeNoise(data.noise_keys))
        pairs = zip(record.conditional, record.unconditional, strict=True)
        agreement = [
            float(F.cosine_similarity(wide(c).flatten(1), wide(u).flatten(1)).mean()) for c, u in pairs
        ]
        settings: dict[str, Any] = {
            "agreement": tuple(round(value, 6) for value in agreement),
            "options": asdict(chosen),
        }
        if chosen.method == "adaptive":
            agreed = next((k for k, value in enumerate(agreement) if value >= chosen.threshold), n)
            first = chosen.full_steps or max(1, agreed)
            return cls(steps=(FULL,) * first + (CONDITIONAL,) * (n - first), **settings)
        first = chosen.full_steps or max(1, n // 2)
        steps = [FULL if k < first or (k - first) % 2 else LINEAR for k in range(n)]
        coefficients = [
            _fit(record, k, chosen.window) if step == LINEAR else () for k, step in enumerate(steps)
        ]
        return cls(steps=tuple(steps), coefficients=tuple(coefficients), **settings)

    def check(self, execution: Execution) -> None:
        """Raise if the policy has no guidance, or another number of steps."""
        _guided(execution)
        execution = denoising(execution, self.kind)
        n = len(self.steps)
        if n != len(execution.sampler) or self.steps[0] != FULL:
            raise PlanMismatch(
                f"guidance was calibrated for {n} steps, {execution.sampler.name} runs "
                f"{len(execution.sampler)}; the first must be full; recalibrate it with step_schedule"
            )
        if {CONDITIONAL, LINEAR} <= set(self.steps) or set(self.steps) - {FULL, CONDITIONAL, LINEAR}:
            raise PlanMismatch(
                f"guidance has steps {', '.join(dict.fromkeys(self.steps))}; needed are full ones and either "
                "conditional or linear ones; recalibrate: vivace calibrate --policy.path=…"
            )
        if tuple(map(len, self.coefficients)) != self._needed_coefficients():
            raise PlanMismatch(
                f"guidance has {[len(row) for row in self.coefficients]} coefficients; its {n} steps need "
                f"{list(self._needed_coefficients())}; recalibrate: vivace calibrate --policy.path=…"
            )
        if len(self.agreement) not in (0, n):
            raise PlanMismatch(
                f"guidance tells the agreement of {len(self.agreement)} steps, of {n}; recalibrate: "
                "vivace calibrate --policy.path=…"
            )

    def _needed_coefficients(self) -> tuple[int, ...]:
        """How many coefficients each step needs: all linear ones look back over the same window."""
        if LINEAR not in self.steps:
            return ()
        window = max(len(row) for row in self.coefficients) // 2 if self.coefficients else 1
        return tuple(
            1 + 2 * min(k, max(1, window)) if step == LINEAR else 0 for k, step in enumerate(self.steps)
        )

    def apply(self, execution: Execution) -> Execution:
        """Run the unconditional branch at the full steps only."""
        twin = _guided(execution).with_guidance(tuple(step == FULL for step in self.steps))
        execution = replace(denoising(execution, self.kind), policy=twin)
        return execution if LINEAR not in self.steps else replace(execution, call=Linear(self.coefficients))

    @classmethod
    def variants(cls, staged: Any, options: GuidanceOptions) -> Iterator[Variant]:
        """Yield both ways of choosing steps."""
        for name, label, method in (
            ("guidance", cls.label, "adaptive"),
            ("linear-guidance", "LinearAG", "linear"),
        ):
            yield Variant(name, label, ((cls.kind, vars(options) | {"method": method}),), cls.colour)

    @classmethod
    def taken(cls, options: Mapping[str, Any]) -> tuple[Part, ...]:
        """Branches that come back, where some are estimated."""
        return (Part.BRANCHES,) if cls.read_options(options).method == "linear" else ()

    @classmethod
    def beginnings(cls, options: Mapping[str, Any], n_steps: int) -> Collection[int]:
        """Anywhere, unless branches are estimated from those of earlier steps."""
        return (0,) if cls.read_options(options).method == "linear" else range(n_steps)

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer both methods: how much agreement is enough for the one, how far the other looks back."""
        method = choose("method", ("adaptive", "linear"))
        if method == "adaptive":
            return {"method": method, "threshold": choose("threshold", Between(0.9, 1.0))}
        return {"method": method, "window": choose("window", range(1, 4))}


def _guided(execution: Execution) -> GuidedPolicy:
    Need.GUIDANCE.require(execution.policy, Guidance.kind)
    return cast(GuidedPolicy, execution.policy)


class _Record:
    """Calls both branches at every step and keeps them."""

    def __init__(self) -> None:
        self.conditional: list[Tensor] = []
        self.unconditional: list[Tensor] = []

    def __call__(
        self, execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        policy = cast(GuidedPolicy, execution.policy)
        run = execution.action(step.index, cache)
        conditional, unconditional = policy.branches(x, policy.condition(step, context), run)
        self.conditional.append(conditional)
        self.unconditional.append(unconditional)
        return policy.guide(conditional, unconditional), run.cache


class Linear:
    """Calls the denoiser at a step, the unconditional branch estimated where it is not run.

    Args:
        coefficients: of each step, by its index: for eps_c now, then eps_c and eps_u of earlier steps, newest
            first; none at a step that runs both branches. Numbers, or tensors of a graph.
    """

    def __init__(self, coefficients: Any) -> None:
        self.coefficients = coefficients

    def can_begin(self, first: int) -> bool:
        """Whether no step from this one on is estimated from predictions of earlier ones."""
        rows = self.coefficients[first:]
        return all((len(row) - 1) // 2 <= since for since, row in enumerate(rows))

    @staticmethod
    def history(pairs: Sequence[tuple[Tensor, Tensor]]) -> Cache:
        """Return the cache that holds earlier predictions, with a condition and without, newest first."""
        return {_KEY: tuple(pairs)}

    @staticmethod
    def newest(cache: Cache) -> tuple[Tensor, Tensor]:
        """Return the newest predictions that a cache holds, with a condition and without."""
        return cache[_KEY][0]

    def __call__(
        self, execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """Call it."""
        policy = cast(GuidedPolicy, execution.policy)
        run = execution.action(step.index, cache)
        predicted = policy.branches(x, policy.condition(step, context), run)
        conditional, history = predicted[0], cache.get(_KEY, ())
        if len(predicted) == 2:
            unconditional = predicted[1]
        else:
            terms = _terms(conditional, history)
            weights = self.coefficients[step.index]
            unconditional = torch.stack(
                [weight * term for weight, term in zip(weights, terms, strict=False)]
            ).sum(0)
        kept = ((conditional, unconditional), *history)
        return policy.guide(conditional, unconditional), {**run.cache, _KEY: kept}


def _terms(conditional: Tensor, history: tuple[tuple[Tensor, Tensor], ...]) -> list[Tensor]:
    return [conditional, *(prediction for pair in history for prediction in pair)]


def _fit(record: _Record, k: int, window: int) -> tuple[float, ...]:
    """Least-squares coefficients of step k over all calibration samples."""
    earlier = range(k - 1, max(-1, k - 1 - window), -1)
    history = tuple((record.conditional[i], record.unconditional[i]) for i in earlier)
    terms = torch.stack([t.flatten().double() for t in _terms(record.conditional[k], history)], dim=1)
    target = record.unconditional[k].flatten().double()
    # on the host, whose least squares do not need columns that are independent
    solution = torch.linalg.lstsq(terms.cpu(), target[:, None].cpu()).solution
    return tuple(round(value, 8) for value in solution[:, 0].tolist())
