"""Look at keys by torch's own kernel where that is faster on this device; no approximation.

    softmax(Q K^T / sqrt(d) + mask) V   in one kernel, scores never written to memory (arXiv 2205.14135)

lerobot's smolvla makes the scores of its language model and of its action expert by a matrix product, keys
and values of grouped heads copied for every head, masks them, and multiplies again. Equal up to rounding
(1e-5). The vision towers of lerobot's policies have the kernel already.

Calibration times both on queries and keys as one chunk has them, and keeps the kernel if it is the faster in
all. What was measured is in the plan. A bundle is made without it: its runtime fuses what it likes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from vivace.accel.in_turn import least_ms
from vivace.accel.registry import beside_exact_work, register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, with_eager
from vivace.accel.variant import Variant
from vivace.policies.execution import Execution, sample
from vivace.policies.language.attention import FUSED, Look
from vivace.policies.sampling.noise import EpisodeNoise

_Given = tuple[Any, ...]
"""What a `Look` is given."""
_REPEATS = 7
_GAIN = 0.95
"""A kernel that takes more than this share of the products' time is no gain."""


@dataclass(frozen=True, kw_only=True)
class FusedAttentionOptions:
    """Whether to look first."""

    measure: bool = True
    """Take the kernel only if it is measured to be faster so on this device; else in any case."""


@register
@dataclass(frozen=True, kw_only=True)
class FusedAttention(Technique):
    """Whether the kernel is taken, and what was measured."""

    kind: ClassVar[str] = "fused_attention"
    seam: ClassVar[Seam] = Seam.EXACT
    label: ClassVar[str] = "attention in one kernel"
    colour: ClassVar[str] = "#6b7f99"
    needs: ClassVar[tuple[Need, ...]] = (Need.EAGER,)
    is_static: ClassVar[bool] = True
    is_for_torch: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False
    Options: ClassVar[type] = FusedAttentionOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}, "always": {"measure": False}}
    hidden: ClassVar[tuple[str, ...]] = ("measured_ms",)

    is_fused: bool
    """Whether it is taken."""
    device: str
    """Where it was timed."""
    measured_ms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Sizes of queries and keys -> time [ms] of the products, and of the kernel."""

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    @property
    def remark(self) -> str:
        """What calibration found."""
        return "" if self.is_fused else "not faster, left out"

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Time both on what one chunk looks at; keep the faster in all."""
        policy = with_eager(execution, cls.kind)
        device = str(policy.placement.device)
        if not cls.read_options(options).measure:
            return cls(is_fused=True, device=device)
        counts, seen = _looked_at(execution, data)
        measured = {sizes: _timed(policy.attend, given) for sizes, given in seen.items()}
        eager, fused = (sum(counts[sizes] * both[i] for sizes, both in measured.items()) for i in (0, 1))
        return cls(is_fused=fused < _GAIN * eager, device=device, measured_ms=measured)

    def apply(self, execution: Execution) -> Execution:
        """Look by the kernel, if it is taken."""
        return _looking(execution, FUSED.look) if self.is_fused else execution

    @classmethod
    def variants(cls, staged: Any, options: FusedAttentionOptions) -> Iterable[Variant]:
        """Itself with all exact work removed."""
        return [beside_exact_work(cls, staged, vars(options))]


def _looking(execution: Execution, look: Look) -> Execution:
    """Run a twin that looks so."""
    twin: Any = with_eager(execution, FusedAttention.kind).attending(look)
    return replace(execution, policy=twin)


def _looked_at(execution: Execution, data: CalibrationData) -> tuple[Counter[str], dict[str, _Given]]:
    """How often a chunk of one observation looks at keys of each size, and what it looked at once."""
    look = with_eager(execution, FusedAttention.kind).attend
    counts: Counter[str] = Counter()
    seen: dict[str, _Given] = {}

    def watch(module: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        sizes = f"{tuple(queries.shape)} x {tuple(keys.shape)}"
        counts[sizes] += 1
        seen.setdefault(sizes, (module, queries, keys, values, mask))
        return look(module, queries, keys, values, mask)

    one = next(data.ones())
    sample(_looking(execution, watch), one.batch, EpisodeNoise(one.noise_keys), one.draft)
    return counts, seen


def _timed(look: Look, given: _Given) -> tuple[float, float]:
    """Least time [ms] of the products, and of the kernel."""
    eager, fused = least_ms(given[1].device, _REPEATS, lambda: look(*given), lambda: FUSED.look(*given))
    return eager, fused
