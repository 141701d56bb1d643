"""Merge patches inside the vision tower (Token Transforming, arXiv 2506.05709).

    y = W x,    W = row-softmax of cos(x_chosen, x) / tau

Of N patches behind a layer the M that are looked at most are chosen, and each becomes a mean of all, weighed
by likeness; attention behind it weighs each by how many patches it stands for. What a patch was is kept and
given back at the tower's end (`policies.vla.siglip`), since whoever reads the tower wants the whole grid.
`grid` makes W the mean of square cells, which looks at nothing.

Deviations: patches are merged once, a quarter of the way in, not at three depths; they are given back by W^T
as a change of what they were.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.accel.registry import register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, with_vision
from vivace.accel.variant import Between, Choices, Variant
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.language.prefix import take_rows
from vivace.policies.vla.siglip import Merging, TowerView

METHODS = ("transform", "grid")


@dataclass(frozen=True, kw_only=True)
class VisionMergeOptions:
    """How many patches go on, from which layer, made how."""

    keep: float = 0.25
    """Share of a camera's patches that go on."""
    method: str = "transform"
    """transform: those looked at most, each a mean of all by likeness; grid: means of square cells."""
    layer: int | None = None
    """The layer of the tower behind which they are merged; a quarter of the way in when None."""
    tau: float = 0.1
    """How much likeness counts: small, and each of them is nearly one patch."""

    def __post_init__(self) -> None:
        """Choices must be known, numbers in range."""
        if self.method not in METHODS:
            raise BadSetting(f"vision_merge method {self.method!r} is unknown; choose {' or '.join(METHODS)}")
        if not (0 < self.keep <= 1 and self.tau > 0):
            raise BadSetting(f"vision_merge keep={self.keep}, tau={self.tau}; needed: 0 < keep <= 1, tau > 0")


@register
@dataclass(frozen=True, kw_only=True)
class VisionMerge(VisionMergeOptions, Technique):
    """The options, with the layer."""

    kind: ClassVar[str] = "vision_merge"
    seam: ClassVar[Seam] = Seam.VISION
    label: ClassVar[str] = "patches merged in the tower"
    colour: ClassVar[str] = "#6a8f3c"
    needs: ClassVar[tuple[Need, ...]] = (Need.VISION,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = VisionMergeOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {method: {"method": method} for method in METHODS}

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose the layer where none is given; nothing is measured."""
        chosen = cls.read_options(options)
        n = with_vision(execution, cls.kind).vision.n_layers
        return cls(**asdict(chosen) | {"layer": n // 4 if chosen.layer is None else chosen.layer})

    def check(self, execution: Execution) -> None:
        """Raise if the tower does not come apart, or has fewer layers."""
        n = with_vision(execution, self.kind).vision.n_layers
        if self.layer is None or not 0 <= self.layer < n:
            raise PlanMismatch(
                f"vision_merge merges patches behind layer {self.layer}, the vision tower has {n}; choose "
                f"0..{n - 1}"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run the rest of the tower on merged patches."""
        policy = with_vision(execution, self.kind)
        merging = Merging(int(self.layer or 0), self.weights, is_even=self.method == "grid")
        twin: Any = policy.with_vision(policy.vision.merging(merging))
        return replace(execution, policy=twin)

    def weights(self, view: TowerView) -> Tensor:
        """Of which patches each one that goes on is made, (B or 1, M, N)."""
        if self.method == "grid":
            return _cells(*view.grid, round(self.keep**-0.5), view.h)
        count = max(1, round(self.keep * view.h.shape[1]))
        chosen = view.attention().topk(count, dim=1).indices.sort(dim=1).values
        unit = F.normalize(view.h.float(), dim=-1)
        return (take_rows(unit, chosen) @ unit.mT / self.tau).softmax(-1).to(view.h.dtype)

    @classmethod
    def variants(cls, staged: Any, options: VisionMergeOptions) -> Iterator[Variant]:
        """Yield both ways at the share that is asked for."""
        for method in METHODS:
            chosen = vars(options) | {"method": method}
            label = f"{options.keep:.0%} of patches, {'alike' if method == 'transform' else 'cells'}"
            is_short = method == METHODS[0]
            yield Variant(f"vision-{method}", label, ((cls.kind, chosen),), cls.colour, is_short)

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer shares and layers."""
        return {
            "keep": Between(0.1, 1.0),
            "method": METHODS,
            "layer": range(staged.vision.n_layers),
        }


def _cells(rows: int, columns: int, side: int, like: Tensor) -> Tensor:
    """Means of cells of `side` x `side` patches (1, M, N); smaller ones at the far edges."""
    across = -(-columns // side)
    row, column = (torch.arange(n, device=like.device) // side for n in (rows, columns))
    cell = (row[:, None] * across + column).flatten()
    n = -(-rows // side) * across
    members = (cell == torch.arange(n, device=like.device)[:, None]).to(like.dtype)
    return (members / members.sum(1, keepdim=True))[None]
