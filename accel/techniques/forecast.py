"""Forecast a block's output from its last computed ones, instead of reusing the newest.

With outputs F_0 (newest), F_1, … computed at steps s_0 > s_1 > …, and k = step - s_0:

    taylor           F(step) = sum_{i=0..m} D^i k^i / i!,  D^0 = F_0,
                     D^i = (D^{i-1} at s_0 - D^{i-1} at s_1) / (s_0 - s_1)
    adams_bashforth  F(step) = F_0 + k sum_{j<p} beta_j f_j,  f_j = (F_j - F_{j+1}) / (s_j - s_{j+1}),
                     beta = (1), (3/2, -1/2), (23/12, -16/12, 5/12)
    fused            0.2 AB_1 + 0.3 AB_2 + 0.5 AB_3

All are linear in the kept outputs, so a forecast is a row of weights, known before anything runs.
A lower order is used until enough outputs are there; order 0 is plain reuse.

Sources: TaylorSeer, arXiv 2503.06923 eq. for F_pred; ky-ji/HAS for the Adams-Bashforth coefficients and
the fusion. Deviations: steps need not be equidistant (each difference is divided by its own gap; for an
equal gap N this is the paper's D^i / N^i); HAS takes derivatives from five-point stencils of an uncached
run, here they are differences of what was computed.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from vivace.accel.registry import exact_work, register
from vivace.accel.rows import make_rows
from vivace.accel.technique import CalibrationData, Need, Part, Seam, Technique, denoising
from vivace.accel.techniques.block_cache import calibrate_updates, check_schedule, search_updates
from vivace.accel.updates import UpdateOptions
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.plain_data import plain

_BETA = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12)}
_FUSION = ((1, 0.2), (2, 0.3), (3, 0.5))
_MAX_ORDER = {"taylor": 4, "adams_bashforth": 3, "fused": 3}


def taylor_weights(history: Sequence[int], step: int, order: int) -> np.ndarray:
    """Weights of the kept outputs (newest first) in the Taylor forecast; lower order if history is short."""
    n = min(order + 1, len(history))
    differences = np.eye(n)  # row j: D^i at history[j] as a combination of the kept outputs
    weights = differences[0].copy()
    for i in range(1, n):
        gaps = [history[j] - history[j + 1] for j in range(n - i)]
        differences = (differences[:-1] - differences[1:]) / np.array(gaps)[:, None]
        weights = weights + differences[0] * (step - history[0]) ** i / math.factorial(i)
    return weights


def adams_bashforth_weights(history: Sequence[int], step: int, order: int) -> np.ndarray:
    """Weights of the kept outputs (newest first) in the Adams-Bashforth forecast of the given order."""
    order = min(order, len(history) - 1)
    weights = np.eye(order + 1)[0]
    for j, beta in enumerate(_BETA[order] if order else ()):
        slope = beta * (step - history[0]) / (history[j] - history[j + 1])
        weights[j] += slope
        weights[j + 1] -= slope
    return weights


def fused_weights(history: Sequence[int], step: int) -> np.ndarray:
    """Weights of HAS's mixture of orders 1 to 3; the highest order there is takes what is left."""
    n = min(4, len(history))
    weights = np.zeros(n)
    for order, share in _FUSION:
        part = adams_bashforth_weights(history[:n], step, order)
        weights[: len(part)] += share * part
    return weights


Rule = Literal["taylor", "adams_bashforth", "fused"]  # named: draccus finds no text behind quotes


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(UpdateOptions):
    """How update steps are chosen and what happens between them."""

    rule: Rule = "taylor"
    """What is forecast by."""
    order: int = 1
    """0..4 for taylor, 1..3 for adams_bashforth; fused always mixes 1 to 3."""


@register
@dataclass(frozen=True, kw_only=True)
class Forecast(Technique):
    """Update steps of every block, and the rule between them."""

    kind: ClassVar[str] = "forecast"
    seam: ClassVar[Seam] = Seam.BLOCKS
    label: ClassVar[str] = "forecast"
    colour: ClassVar[str] = "#b3589a"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
    needs_left: ClassVar[tuple[Part, ...]] = (Part.BRANCHES,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = ForecastOptions
    hidden: ClassVar[tuple[str, ...]] = ("updates",)
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{f"taylor{order}": {"method": "uniform", "updates": 5, "order": order} for order in range(5)},
        "adams_bashforth": {"updates": 5, "rule": "adams_bashforth", "order": 2, "bubbling": 0},
        "fused": {"updates": 5, "rule": "fused", "bubbling": 0},
    }

    n_steps: int
    updates: dict[str, tuple[int, ...]]
    rule: str = "taylor"
    order: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Check rule and order."""
        if self.rule not in _MAX_ORDER:
            raise BadSetting(f"forecast rule {self.rule!r} is not one of {', '.join(_MAX_ORDER)}")
        if not 0 <= self.order <= _MAX_ORDER[self.rule]:
            raise BadSetting(f"forecast order {self.order}; {self.rule} takes 0..{_MAX_ORDER[self.rule]}")

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose update steps as `block_cache` does; options are the fields of `ForecastOptions`."""
        n_steps, blocks = len(denoising(execution, cls.kind).sampler), execution.policy.spec.blocks
        chosen = cls.read_options(options).settled(n_steps, len(blocks))
        asked = UpdateOptions(**{f.name: getattr(chosen, f.name) for f in fields(UpdateOptions)})
        return cls(
            n_steps=n_steps,
            updates=calibrate_updates(cls.kind, execution, data, asked),
            rule=chosen.rule,
            order=chosen.order,
            options=plain(asked),
        )

    def weights(self, history: Sequence[int], step: int) -> tuple[float, ...]:
        """Weights of the outputs kept from steps `history` (newest first) at `step`."""
        if self.rule == "taylor":
            weights = taylor_weights(history, step, self.order)
        elif self.rule == "adams_bashforth":
            weights = adams_bashforth_weights(history, step, self.order)
        else:
            weights = fused_weights(history, step)
        return tuple(float(w) for w in weights)

    def check(self, execution: Execution) -> None:
        """Block ids and number of steps must be those of the execution."""
        check_schedule(self.kind, self.updates, self.n_steps, execution)

    def apply(self, execution: Execution) -> Execution:
        """Run the schedule with forecasts in between."""
        depth = 4 if self.rule == "fused" else self.order + 1
        rows = make_rows(execution.policy.spec.blocks, self.updates, self.n_steps, depth, self.weights)
        return replace(denoising(execution, self.kind), action=rows)

    @classmethod
    def variants(cls, staged: Any, options: ForecastOptions) -> Iterator[Variant]:
        """Yield two orders of TaylorSeer; one beside the cache of a vision-language-action policy."""
        if Need.LANGUAGE.is_met(staged):
            updates = max(2, len(staged.sampler) // 5)
            chosen = {"method": "uniform", "updates": updates}
            yield Variant("taylor1", f"TaylorSeer, uniform S = {updates}", ((cls.kind, chosen),), cls.colour)
            return
        options = options.settled(len(staged.sampler), len(staged.blocks))
        for order in (1, 2):
            chosen = {"method": "uniform", "updates": options.updates, "order": order}
            label = f"TaylorSeer order {order}, uniform S = {options.updates}, hoisted"
            wanted = (*exact_work(staged), (cls.kind, chosen))
            yield Variant(f"taylor{order}", label, wanted, cls.colour, is_short=order == 1)

    @classmethod
    def beginnings(cls, options: Mapping[str, Any], n_steps: int) -> Collection[int]:
        """At the first step alone: later ones forecast by several before."""
        return (0,)

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer what the cache has, of two updates and more, and every rule in the orders that all know.

        Of one update there is nothing to forecast by: that is the cache itself.
        """
        found = search_updates(staged, before, choose, fewest=2)
        if found is None:
            return None
        rule = choose("rule", tuple(_MAX_ORDER))
        if rule == "fused":
            return found | {"rule": rule}
        return found | {"rule": rule, "order": choose("order", range(1, min(_MAX_ORDER.values()) + 1))}
