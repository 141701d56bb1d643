"""Cut channels out of the language model's MLPs, and make up for it at low rank.

EfficientVLA (arXiv 2506.10100) cuts 25 % by PruneNet (2501.15296), a policy learned on the weights. Here a
channel's saliency is its mean absolute activation on calibration observations times the norm of its column
of `down_proj`: a deviation, and named so.

What the cut takes away, R(x) = MLP(x) - pruned MLP(x), is given back in part by a map of rank r,

    R(x) ≈ B A x,      the best in the eigenspace of the MLP's inputs,

after EoRA (2410.21271), which compensates one matrix's error the same way.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vivace.accel.registry import register
from vivace.accel.settings import check_tensors, is_ascending
from vivace.accel.technique import (
    CalibrationData,
    Need,
    Seam,
    Technique,
    with_language,
)
from vivace.accel.variant import Choices, Variant
from vivace.policies.block import EMPTY, Block, Cache
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.language.llama import normed
from vivace.policies.language.prefix import LayerView
from vivace.policies.plain_data import Between


@dataclass(frozen=True, kw_only=True)
class MlpPruneOptions:
    """How much is cut."""

    sparsity: float = 0.25
    """Share of the channels of every MLP that is cut, in [0, 1)."""
    rank: int = 0
    """Rank of the compensation; 0: none."""

    def __post_init__(self) -> None:
        """Shares and ranks must be possible."""
        if not 0 <= self.sparsity < 1 or self.rank < 0:
            raise BadSetting(
                f"mlp_prune sparsity={self.sparsity}, rank={self.rank}; needed: 0 <= sparsity < 1, rank >= 0"
            )


@register
@dataclass(frozen=True, kw_only=True)
class MlpPrune(Technique):
    """Which channels stay."""

    kind: ClassVar[str] = "mlp_prune"
    seam: ClassVar[Seam] = Seam.WEIGHTS
    label: ClassVar[str] = "MLP channels cut"
    colour: ClassVar[str] = "#0b8f7d"
    needs: ClassVar[tuple[Need, ...]] = (Need.LANGUAGE, Need.GATED)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = MlpPruneOptions
    hidden: ClassVar[tuple[str, ...]] = ("kept",)
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cut": {"sparsity": 0.5},
        "compensated": {"sparsity": 0.5, "rank": 2},
    }

    kept: tuple[tuple[int, ...], ...]
    """Channels of each layer's MLP that stay, ascending."""
    options: dict[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """"<layer>.down" (r, D) and "<layer>.up" (D, r) of the compensation; stored beside the plan."""

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose channels by activation; options are the fields of `MlpPruneOptions`."""
        chosen = cls.read_options(options)
        for need in cls.needs:
            need.require(execution.policy, cls.kind)
        layers = with_language(execution, cls.kind).language.model.layers
        inputs = _mlp_inputs(execution, data)
        kept: list[tuple[int, ...]] = []
        tensors: dict[str, Tensor] = {}
        for i, layer in enumerate(layers):
            x = inputs[i]
            with torch.inference_mode():
                channels = layer.mlp.act_fn(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)  # (tokens, M)
                saliency = channels.abs().mean(0) * layer.mlp.down_proj.weight.norm(dim=0)
            count = max(1, round((1 - chosen.sparsity) * len(saliency)))
            stays = saliency.topk(count).indices.sort().values
            kept.append(tuple(stays.tolist()))
            if chosen.rank:
                with torch.inference_mode():
                    gone = torch.ones_like(saliency, dtype=torch.bool)
                    gone[stays] = False
                    lost = channels[:, gone] @ layer.mlp.down_proj.weight[:, gone].T
                up, down = compensation(x, lost, chosen.rank)
                tensors |= {f"{i}.up": up.cpu(), f"{i}.down": down.cpu()}
        return cls(kept=tuple(kept), options=asdict(chosen), tensors=tensors)

    def check(self, execution: Execution) -> None:
        """Raise if the policy has no gated MLPs in a language stage, or others."""
        for need in self.needs:
            need.require(execution.policy, self.kind)
        layers = with_language(execution, self.kind).language.model.layers
        widths = [layer.mlp.down_proj.in_features for layer in layers]
        fits = len(self.kept) == len(layers) and all(
            stays and stays[0] >= 0 and stays[-1] < width and is_ascending(stays)
            for stays, width in zip(self.kept, widths, strict=False)
        )
        if not fits:
            raise PlanMismatch(
                f"mlp_prune is for {len(self.kept)} MLPs, the language model has {len(layers)} of "
                f"{widths[0]} channels; needed are ascending channels of each; recalibrate: "
                "vivace calibrate --policy.path=…"
            )
        if self.options.get("rank", 0) or self.tensors:
            self._check_compensation(layers)

    def _check_compensation(self, layers: Sequence[Any]) -> None:
        needed: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {}
        for i, layer in enumerate(layers):
            up, width = self.tensors.get(f"{i}.up"), layer.mlp.down_proj.out_features
            rank = None if up is None or up.ndim != 2 else up.shape[1]
            needed[f"{i}.up"] = torch.float32, (width, rank)
            needed[f"{i}.down"] = torch.float32, (rank, width)
        check_tensors(self.kind, self.tensors, needed)

    def apply(self, execution: Execution) -> Execution:
        """Run a twin with smaller MLPs; all other tensors are shared."""
        policy = with_language(execution, self.kind)
        twin: Any = policy.with_weights(copy_sharing_tensors(policy.policy))
        for i, (layer, stays) in enumerate(zip(twin.language.model.layers, self.kept, strict=True)):
            weight = layer.mlp.down_proj.weight
            smaller = _cut(layer.mlp, torch.tensor(stays, device=weight.device))
            if self.tensors:  # the plan keeps float32, whatever the policy computes in
                down, up = (self.tensors[f"{i}.{name}"].to(weight) for name in ("down", "up"))
                smaller = Compensated(smaller, down, up)
            layer.mlp = smaller
        return replace(execution, policy=twin)

    @classmethod
    def variants(cls, staged: Any, options: MlpPruneOptions) -> Iterator[Variant]:
        """Yield the share that is asked for, the paper's by default; compensated if that is asked for."""
        label = f"MLP channels -{options.sparsity:.0%}" + (f", rank {options.rank}" if options.rank else "")
        yield Variant("mlp", label, ((cls.kind, vars(options)),), cls.colour)

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer to cut up to half, and ranks of the compensation."""
        return {"sparsity": Between(0.0, 0.5), "rank": (0, 8, 16, 32)}


class Compensated(nn.Module):
    """An MLP plus a map of low rank."""

    def __init__(self, mlp: nn.Module, down: Tensor, up: Tensor):
        super().__init__()
        self.mlp = mlp
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return MLP(x) + B A x."""
        return self.mlp(x) + (x @ self.down.T) @ self.up.T


def compensation(x: Tensor, lost: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (D, r) and A (r, D) with the least |lost - x Aᵀ Bᵀ|, of inputs and losses (tokens, D)."""
    x, lost = x.double(), lost.double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    stays = values > values[-1] * 1e-10
    root, basis = values[stays].sqrt(), vectors[:, stays]  # x = U diag(root) basisᵀ
    whitened = (lost.T @ (x @ basis)) / root  # (D, n): the best full-rank map, in whitened inputs
    u, s, v = torch.linalg.svd(whitened, full_matrices=False)
    up = u[:, :rank] * s[:rank]
    down = (v[:rank] / root) @ basis.T
    return up.float().contiguous(), down.float().contiguous()


def copy_sharing_tensors[Module: nn.Module](module: Module) -> Module:
    """Copy a module's structure; its parameters and buffers are the same tensors."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


class _Inputs:
    """A runner that computes every block and keeps what enters the MLP branches."""

    cache: Cache = EMPTY

    def __init__(self) -> None:
        self.streams: list[Tensor] = []

    def __call__(self, block: Block, h: Tensor, *cond: Tensor) -> Tensor:
        if block.id.endswith(".mlp"):
            self.streams.append(h)
        return block.fn(h, *cond)


@torch.inference_mode()
def _mlp_inputs(execution: Execution, data: CalibrationData) -> list[Tensor]:
    """What each layer's MLP multiplies, padding left out, (tokens, D) a layer."""
    policy = with_language(execution, MlpPrune.kind)
    run, masks = _Inputs(), []

    def look(view: LayerView) -> None:
        masks.append(view.prefix.is_token(view.h.shape[1]))

    policy.encode(data.batch, run, look)
    layers = policy.language.model.layers
    return [
        normed(layer.post_attention_layernorm, h)[is_token]
        for layer, h, is_token in zip(layers, run.streams, masks, strict=True)
    ]


def _cut(mlp: Any, stays: Tensor) -> Any:
    """Return an MLP with these channels only; its other settings are the same."""
    smaller = copy_sharing_tensors(mlp)
    smaller.intermediate_size = len(stays)
    for name in ("gate_proj", "up_proj", "down_proj"):
        old = getattr(mlp, name)
        weight = old.weight[:, stays] if name == "down_proj" else old.weight[stays]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=old.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if old.bias is not None:
            bias = old.bias if name == "down_proj" else old.bias[stays]
            linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
        setattr(smaller, name, linear)
    return smaller
