"""Drop language-model layers that hardly change the stream (EfficientVLA, arXiv 2506.10100, section 3.1).

    I(l) = 1 - mean over observations and tokens of cos(x_l, x_{l+1})                             (eq. 1)

x_l enters layer l, x_{l+1} leaves it, before any final norm. The n layers with the lowest I go. Indices mean
the layers there are when the technique is applied.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.accel.memory import remembered
from vivace.accel.registry import register
from vivace.accel.settings import is_ascending
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, with_language
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.language.prefix import LayerView, Survivors
from vivace.policies.staged import Batch


@dataclass(frozen=True, kw_only=True)
class LayerSkipOptions:
    """How the layers are chosen."""

    n_dropped: int = 4
    """Language layers to drop."""
    rule: str = "importance"
    """importance: lowest I(l), as in the paper; greedy: scored anew after every drop; uniform: spread evenly,
    whatever the input (unified layer skipping, arXiv 2404.06954)."""

    keeps_keys: bool = False
    """Keys and values of a dropped layer are projected all the same, for an action expert that reads them;
    else the layer of the expert that reads them is dropped too."""

    def __post_init__(self) -> None:
        """The rule must be known."""
        if self.rule not in ("importance", "greedy", "uniform"):
            raise BadSetting(
                f"layer_skip rule {self.rule!r} is unknown; choose importance, greedy or uniform"
            )
        if self.n_dropped < 0:
            raise BadSetting(f"layer_skip n_dropped={self.n_dropped}; 0 or more is needed")


@register
@dataclass(frozen=True, kw_only=True)
class LayerSkip(Technique):
    """Which language layers run."""

    kind: ClassVar[str] = "layer_skip"
    seam: ClassVar[Seam] = Seam.LAYERS
    label: ClassVar[str] = "layers dropped"
    colour: ClassVar[str] = "#0b8f7d"
    needs: ClassVar[tuple[Need, ...]] = (Need.LANGUAGE,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = LayerSkipOptions
    hidden: ClassVar[tuple[str, ...]] = ("importance",)
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "importance": {"n_dropped": 1},
        "greedy": {"n_dropped": 2, "rule": "greedy"},
        "uniform": {"n_dropped": 2, "rule": "uniform"},
        "keys kept": {"n_dropped": 1, "keeps_keys": True},
    }
    former_flags: ClassVar[Mapping[str, str]] = {"layer_rule": "rule"}

    kept: tuple[int, ...]
    """Layers that run, ascending."""
    importance: tuple[float, ...] = ()
    """I(l) of every layer, all of them running."""
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose the layers; options are the fields of `LayerSkipOptions`."""
        chosen = cls.read_options(options)
        policy = with_language(execution, cls.kind)
        n = len(policy.language.layers)
        if chosen.n_dropped >= n:
            raise BadSetting(
                f"layer_skip is to drop {chosen.n_dropped} of {n} language layers; drop 0..{n - 1}"
            )
        scores = _importance(execution, data)
        kept = keep(execution, data.batch, chosen, scores)
        return cls(kept=kept, importance=tuple(round(x, 6) for x in scores), options=asdict(chosen))

    def check(self, execution: Execution) -> None:
        """Raise if the policy has no language stage, or not these layers."""
        n = len(with_language(execution, self.kind).language.layers)
        if not self.kept or not is_ascending(self.kept) or self.kept[0] < 0 or self.kept[-1] >= n:
            raise PlanMismatch(
                f"layer_skip keeps layers {list(self.kept)}, the language model has {n}; needed are "
                f"ascending indices of 0..{n - 1}; recalibrate: vivace calibrate --policy.path=…"
            )
        if len(self.importance) not in (0, n):
            raise PlanMismatch(
                f"layer_skip tells the importance of {len(self.importance)} layers, the language model has "
                f"{n}; recalibrate: vivace calibrate --policy.path=…"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run the kept layers."""
        policy = with_language(execution, self.kind)
        keeps_keys = self.options.get("keeps_keys", False)
        twin: Any = policy.with_branches(self.kept) if keeps_keys else policy.with_layers(self.kept)
        return replace(execution, policy=twin)

    def pictured(self) -> dict[str, Any]:
        """Say how much every layer matters, and which of them run."""
        return {"layers": {"importance": self.importance, "kept": self.kept}}

    @classmethod
    def variants(cls, staged: Any, options: LayerSkipOptions) -> Iterator[Variant]:
        """Yield the paper's share, 10 of 32, and as many dropped evenly; a sixth where tokens are written."""
        n = len(staged.language.layers)
        if Need.TOKENS.is_met(staged):
            dropped = {"n_dropped": max(1, round(n / 6))}
            label = f"{dropped['n_dropped']} layers dropped"
            yield Variant("layers", label, ((cls.kind, dropped),), cls.colour, is_short=True)
            return
        dropped = {"n_dropped": round(n * 10 / 32)}
        evenly: dict[str, Any] = {**dropped, "rule": "uniform"}
        label = f"{n - dropped['n_dropped']} of {n} layers"
        yield Variant("layers", label, ((cls.kind, dropped),), cls.colour, is_short=True)
        label = f"{dropped['n_dropped']} layers dropped evenly"
        yield Variant("uniform-layers", label, ((cls.kind, evenly),), "#b3589a")

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer to drop one and up to all but one; they are read once a chunk, whatever the steps."""
        n = len(staged.language.layers)
        if n < 2:
            return None
        n_dropped, rule = choose("n_dropped", range(1, n)), choose("rule", tuple(_KEEP))
        is_same = n_dropped == 1 and rule == "greedy"  # scored anew after the only drop
        return {"n_dropped": n_dropped, "rule": "importance" if is_same else rule}


def layers_under(staged: Any, requests: Sequence[Request]) -> int:
    """Return how many language layers there are under techniques of earlier seams."""
    options = dict(requests).get(LayerSkip.kind)
    dropped = 0 if options is None else LayerSkip.read_options(options).n_dropped
    return len(staged.language.layers) - int(dropped)


def blocks_under(staged: Any, requests: Sequence[Request]) -> int:
    """Return how many blocks a denoiser has: where it runs along the language layers, fewer under fewer."""
    if LayerSkip.kind not in dict(requests):
        return len(staged.blocks)
    return len(staged.with_layers(tuple(range(layers_under(staged, requests)))).blocks)


@torch.inference_mode()
@remembered
def _importance(execution: Execution, data: CalibrationData) -> list[float]:
    return layer_importance(execution, data.batch)


def layer_importance(execution: Execution, batch: Batch) -> list[float]:
    """Return I(l) of every language layer on a batch of observations, padding left out."""
    policy = execution.policy
    scores: list[float] = []

    def look(view: LayerView) -> Tensor | Survivors | None:
        likeness = F.cosine_similarity(view.before.float(), view.h.float(), dim=-1)  # (B, S)
        is_token = view.prefix.is_token(likeness.shape[1])
        share = (likeness * is_token).sum(1) / is_token.sum(1)
        scores.append(1.0 - float(share.mean()))
        return execution.select(view)

    policy.encode(batch, execution.language, look)
    return scores


def keep(
    execution: Execution, batch: Batch, options: LayerSkipOptions, scores: list[float] | None = None
) -> tuple[int, ...]:
    """Return the layers that stay, ascending; `scores` are measured unless given."""
    scores = layer_importance(execution, batch) if scores is None else scores
    return _KEEP[options.rule](execution, batch, scores, options.n_dropped)


def _lowest(execution: Execution, batch: Batch, scores: list[float], n: int) -> tuple[int, ...]:
    dropped = set(sorted(range(len(scores)), key=scores.__getitem__)[:n])
    return tuple(i for i in range(len(scores)) if i not in dropped)


def _greedy(execution: Execution, batch: Batch, scores: list[float], n: int) -> tuple[int, ...]:
    kept = tuple(range(len(scores)))
    policy = with_language(execution, LayerSkip.kind)
    for _ in range(n):
        twin: Any = policy.with_layers(kept)
        scores = layer_importance(replace(execution, policy=twin), batch)
        least = scores.index(min(scores))
        kept = kept[:least] + kept[least + 1 :]
    return kept


def _evenly(execution: Execution, batch: Batch, scores: list[float], n: int) -> tuple[int, ...]:
    """Keep layers spread evenly, the first and the last among them."""
    total, keep = len(scores), len(scores) - n
    if keep == 1:
        return (0,)
    return tuple(round(i * (total - 1) / (keep - 1)) for i in range(keep))


_KEEP = {"importance": _lowest, "greedy": _greedy, "uniform": _evenly}
