"""Keep the visual tokens that matter (EfficientVLA, arXiv 2506.10100, section 3.2).

    r_i   = sum over text tokens j of the mean over heads of A[j, i]                              (eq. 2)
    key   = the K_key patches with the largest r                                                  (eq. 3)
    task  = of the others, the floor(alpha (K_final - K_key)) with the largest r
    Div_i = 1 - max over key patches k of cos(v_i, v_k), fills up the rest                        (eq. 4)

A is the attention of the text rows on the patches: under the causal mask a patch cannot look at later text,
so the paper's "visual to text" is read as its transpose. It is computed at the one layer that needs it.
v is the stream after that layer. Which patches stay depends on the observation, how many does not.

Of several cameras `globalcom2` (GlobalCom², arXiv 2501.05179) keeps of each as many as it is looked at:

    s_j = sum of r_i over the patches of camera j,    p = softmax(s / tau),    share_j = 1 + p_j - mean of p

and of camera j those of its n_j patches with the largest r, in all K_final n_j share_j / sum of n share.

Deviations: the paper shares out the crops of one picture by a thumbnail of the whole, which also adds to the
scores inside a crop. A policy has cameras and no thumbnail; text looks at all of them at once, and that one
row of attention is both. The paper rounds down; here K_final patches stay always, shared out by Webster's
rule, so that the number of rows does not depend on the observation and no camera gives more than it has. At
the paper's tau = 10 shares differ by what hundreds of text tokens add up to; few tokens need a smaller one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.accel.registry import register
from vivace.accel.technique import Need, Part, Seam, Technique, with_language
from vivace.accel.techniques.layer_skip import layers_under
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.language.prefix import EARLY, LayerView, Survivors, take_rows
from vivace.policies.plain_data import Between

METHODS = ("efficientvla", "fastv", "globalcom2", "random", "uniform")
SOURCES = ("text", "cognition")
SHARED = "globalcom2"
UNSEEING = ("random", "uniform")
"""Methods that do not look at the observation."""


@dataclass(frozen=True, kw_only=True)
class PatchSelectOptions:
    """How many patches stay, after which layer, chosen how."""

    k_final: int = 56
    """Patches kept, of all cameras together."""
    method: str = "efficientvla"
    """efficientvla; fastv: the largest r alone (arXiv 2403.06764); globalcom2: those of each camera, of which
    as many stay as it is looked at; random; uniform: an even grid."""
    layer: int = 1
    """Patches are dropped after this layer, by its attention; counts layers after any deletion."""
    k_key: int = 4
    """Of them, key ones: those that text looks at most."""
    alpha: float = 0.5
    """Share of the patches besides the key ones chosen by relevance; the rest by diversity."""
    source: str = "text"
    """Rows of the attention: all text tokens, or the cognition query alone."""
    per_camera: bool = False
    """Keep as many patches of each camera; otherwise cameras compete."""
    tau: float = 10.0
    """globalcom2: above 0; the larger, the more alike are the cameras' shares."""
    early: str = "keep"
    """What becomes of dropped patches in the layers before, which an action expert reads too. keep: their
    keys and values stay; drop: those go too; again: all layers run anew without them, positions as they were
    (GemFilter, arXiv 2409.17422)."""
    seed: int = 0
    """Of the random choice, which is the same for every observation."""

    def __post_init__(self) -> None:
        """Choices must be known and counts fit each other."""
        if self.early not in EARLY:
            raise BadSetting(
                f"patch_select early={self.early!r} is unknown; choose one of {', '.join(EARLY)}"
            )
        if self.method not in METHODS or self.source not in SOURCES:
            raise BadSetting(
                f"patch_select method {self.method!r}, source {self.source!r}; methods: "
                f"{', '.join(METHODS)}; sources: {', '.join(SOURCES)}"
            )
        if self.method == SHARED and (self.per_camera or not self.tau > 0):
            raise BadSetting(
                f"patch_select method {self.method!r} has per_camera={self.per_camera}, tau={self.tau}; it "
                "shares patches out among cameras itself, by a tau above 0: leave per_camera out"
            )
        if not 0 <= self.k_key <= self.k_final or not 0 <= self.alpha <= 1 or self.k_final < 1:
            raise BadSetting(
                f"patch_select k_final={self.k_final}, k_key={self.k_key}, alpha={self.alpha}; needed: "
                "k_final >= 1, 0 <= k_key <= k_final, 0 <= alpha <= 1"
            )


@register
@dataclass(frozen=True, kw_only=True)
class PatchSelect(PatchSelectOptions, Technique):
    """The options, which say it all."""

    kind: ClassVar[str] = "patch_select"
    seam: ClassVar[Seam] = Seam.PATCHES
    label: ClassVar[str] = "patches dropped"
    colour: ClassVar[str] = "#0b8f7d"
    needs: ClassVar[tuple[Need, ...]] = (Need.LANGUAGE,)
    takes: ClassVar[tuple[Part, ...]] = (Part.PATCHES,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = PatchSelectOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{method: {"k_final": 6, "k_key": 2, "method": method} for method in METHODS},
        "per camera": {"k_final": 6, "k_key": 1, "per_camera": True},
        "cognition": {"k_final": 6, "source": "cognition", "layer": 0},
    }
    former_kinds: ClassVar[tuple[str, ...]] = ("token_select",)
    former_flags: ClassVar[Mapping[str, str]] = {"token_method": "method", "token_layer": "layer"}

    def check(self, execution: Execution) -> None:
        """Raise if the policy has no language stage, fewer layers, or fewer patches."""
        policy = with_language(execution, self.kind)
        counts = policy.n_patches
        wanted = self.k_final // len(counts) if self.per_camera else self.k_final
        available = min(counts) if self.per_camera else sum(counts)
        if wanted > available or (self.per_camera and self.k_final % len(counts)):
            raise PlanMismatch(
                f"patch_select keeps {self.k_final} patches, the policy has {' + '.join(map(str, counts))}; "
                "choose k_final no larger, and with per_camera a multiple of the number of cameras"
            )
        if self.early != "keep" and not policy.language.drops_early:
            raise PlanMismatch(
                f"patch_select early={self.early!r} is about keys and values of earlier layers, which nobody "
                f"reads of policy {policy.spec.type!r}; leave it at 'keep'"
            )
        first, n = policy.language.first_drop, len(policy.language.layers)
        if not first <= self.layer < n:
            joined = f", and adds to its patches up to layer {first}" if first else ""
            raise PlanMismatch(
                f"patch_select works after layer {self.layer}, the language model runs {n}{joined}; choose "
                f"{first}..{n - 1}"
            )

    def apply(self, execution: Execution) -> Execution:
        """Drop the other patches; which ones, is known before any is seen where it does not matter."""
        if self.method not in UNSEEING:
            return replace(execution, select=self.select)
        rows = self._unseeing(with_language(execution, self.kind).n_patches)
        same = _Same(self.layer, rows.to(execution.policy.placement.device), self.early)
        return replace(execution, select=same)

    def select(self, view: LayerView) -> Tensor | Survivors | None:
        """Return the kept patches (B, k_final), ascending, after the chosen layer."""
        if view.index != self.layer:
            return None
        if self.method in UNSEEING:
            rows = self._unseeing(view.prefix.n_patches).to(view.h.device)
            return _Same(self.layer, rows, self.early)(view)
        relevance = self.relevance(view)
        if self.method == SHARED:
            found = shared_out(relevance, view.prefix.n_patches, self.k_final, self.tau)
            return _left(found, self.early)
        patches = view.prefix.patches_of(view.h)
        counts = view.prefix.n_patches if self.per_camera else (relevance.shape[1],)
        kept, first = [], 0
        for n in counts:
            part = slice(first, first + n)
            choice = self._choose(relevance[:, part], patches[:, part], self.k_final // len(counts))
            kept.append(first + choice)
            first += n
        return _left(torch.cat(kept, dim=1), self.early)

    @classmethod
    def variants(cls, staged: Any, options: PatchSelectOptions) -> Iterator[Variant]:
        """Yield the paper's share, 56 of 256, and simpler choices; half where tokens are written."""
        n, layer = sum(staged.n_patches), max(1, staged.language.first_drop)
        if Need.TOKENS.is_met(staged):
            k = max(5, n // 2)
            yield Variant("tokens", f"{k} of {n} patches", (_keep(k, layer),), cls.colour, is_short=True)
            return
        k = max(5, round(n * 56 / 256))
        yield Variant("tokens", f"{k} of {n} patches", (_keep(k, layer),), cls.colour, is_short=True)
        others = {"fastv": "FastV", "random": "random"}
        if len(staged.n_patches) > 1:
            others[SHARED] = "shared out among cameras"
        for method, label in others.items():
            wanted = (_keep(k, layer, method=method),)
            yield Variant(method, f"{label}, {k} patches", wanted, "#b3589a", is_short=method == "fastv")

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer every number of patches that holds the key ones, after every layer that is left."""
        widest = range(staged.language.first_drop, len(staged.language.layers))
        layers = range(widest.start, layers_under(staged, before))
        if not layers or sum(staged.n_patches) < cls.k_key:
            return None
        return {
            "k_final": choose("k_final", range(cls.k_key, sum(staged.n_patches) + 1)),
            "method": choose("method", METHODS),
            "layer": choose("layer", layers, widest),
            "alpha": choose("alpha", Between(0.0, 1.0)),
        }

    def relevance(self, view: LayerView) -> Tensor:
        """Relevance r of every patch, (B, patches)."""
        weights = view.attention().mean(1)  # (B, L, patches)
        rows = view.prefix.is_text
        if self.source == "cognition":
            rows = rows & (rows.cumsum(1) == rows.sum(1, keepdim=True))
        return (weights * rows[..., None]).sum(1)

    def _unseeing(self, n_patches: tuple[int, ...]) -> Tensor:
        """The same patches (k_final,) for every observation, ascending; drawn on the host, always."""
        counts = n_patches if self.per_camera else (sum(n_patches),)
        k, kept, first = self.k_final // len(counts), [], 0
        for n in counts:
            if self.method == "random":
                order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
                kept.append(first + order[:k].sort().values)
            else:
                kept.append(first + torch.linspace(0, n - 1, k).round().long())
            first += n
        return torch.cat(kept)

    def _choose(self, relevance: Tensor, patches: Tensor, k: int) -> Tensor:
        order = relevance.argsort(dim=1, descending=True)
        if self.method == "fastv":
            return order[:, :k].sort(dim=1).values
        k_key = min(self.k_key, k)
        k_task = int(self.alpha * (k - k_key))
        first, rest = order[:, : k_key + k_task], order[:, k_key + k_task :]
        unit = F.normalize(patches.float(), dim=-1)
        key, others = take_rows(unit, first[:, :k_key]), take_rows(unit, rest)
        nearest = (others @ key.mT).amax(-1) if k_key else others.new_zeros(others.shape[:2])
        diverse = rest.gather(1, (-nearest).argsort(dim=1, descending=True)[:, : k - k_key - k_task])
        return torch.cat([first, diverse], dim=1).sort(dim=1).values


def shared_out(relevance: Tensor, n_patches: tuple[int, ...], k: int, tau: float) -> Tensor:
    """Choose the most relevant patches of each camera, of which as many as it is looked at.

    Webster's rule: the patch that is looked at most but for r others of its camera comes before others by
    (patches of the camera x its share) / (r + 1/2).

    Args:
        relevance: of every patch (B, patches), 0 or more.
        n_patches: of each camera.
        k: patches kept in all.
        tau: temperature.

    Returns:
        Their indices (B, k), ascending.
    """
    cameras = relevance.float().split(n_patches, dim=1)
    mass = torch.stack([each.sum(1) for each in cameras], dim=1)  # (B, cameras)
    p = (mass / tau).softmax(1)
    shares = 1 + p - p.mean(1, keepdim=True)
    ranks = [each.argsort(dim=1, descending=True).argsort(dim=1) for each in cameras]
    parts = zip(n_patches, shares.split(1, dim=1), ranks, strict=True)
    turn = torch.cat([n * share / (rank + 0.5) for n, share, rank in parts], dim=1)
    return turn.argsort(dim=1, descending=True)[:, :k].sort(dim=1).values


def _left(patches: Tensor, early: str) -> Tensor | Survivors:
    """What a selector says of the patches that stay."""
    return patches if early == "keep" else Survivors(patches, early)


def _keep(k_final: int, layer: int, **options: Any) -> Request:
    return PatchSelect.kind, {"k_final": k_final, "layer": layer, **options}


@dataclass(frozen=True, eq=False)
class _Same:
    """Keeps the same patches of every observation, after one layer."""

    layer: int
    rows: Tensor
    """(K,) ascending"""
    early: str = "keep"

    def __call__(self, view: LayerView) -> Tensor | Survivors | None:
        """Return them (B, K)."""
        if view.index != self.layer:
            return None
        return _left(self.rows.expand(view.h.shape[0], -1), self.early)
