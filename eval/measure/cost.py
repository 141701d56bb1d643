"""What a vision-language-action model costs, module by module and plan by plan, from shapes alone.

Two ways of counting. The paper's (EfficientVLA, arXiv 2506.10100, tables 1 and 2; reconstructed from them):
with a language-model head evaluated at every position, and without crediting the action cache. Ours: what
is really run, no language-model head, the cache counted.
"""

from dataclasses import dataclass
from typing import Any

import torch

from vivace.accel.flops import count_flops
from vivace.accel.techniques.layer_skip import LayerSkip
from vivace.accel.techniques.mlp_prune import MlpPrune
from vivace.accel.techniques.patch_select import PatchSelect
from vivace.policies.execution import Execution, as_trained

PAPER_PLANS = (("L28 T112", 28, 112), ("L28 T56", 28, 56), ("L22 T112", 22, 112), ("L22 T56", 22, 56))
"""Name, language layers kept, patches kept: each with a quarter of the MLP channels cut, cache interval 5."""
CACHE_INTERVAL = 5
TEXT_TOKENS = 23
"""Tokens of a prompt with BOS, as the paper's FLOPs imply."""


@dataclass(frozen=True)
class Cost:
    """One plan's cost."""

    name: str
    parameters: dict[str, int]
    """Module -> parameters, the paper's way."""
    paper: dict[str, float]
    """Module -> FLOPs, the paper's way."""
    full: dict[str, float]
    """Module -> FLOPs that are run."""


def vla_costs(staged: Any) -> list[Cost]:
    """Cost of a staged vision-language-action policy as it is, and under the paper's four plans.

    Args:
        staged: with a language stage; on the meta device nothing is computed.
    """
    plain = as_trained(staged)
    rows = [_cost("none", plain, 1.0, sum(staged.n_patches))]
    for name, layers, patches in PAPER_PLANS:
        if layers <= len(staged.language.layers) and patches <= sum(staged.n_patches):
            rows.append(_cost(name, _efficientvla(plain, layers, patches), 1 / CACHE_INTERVAL, patches))
    return rows


def _efficientvla(plain: Execution, layers: int, patches: int) -> Execution:
    policy: Any = plain.policy
    width = policy.language.model.config.intermediate_size
    stays = tuple(range(round(0.75 * width)))
    pruned = MlpPrune(kept=(stays,) * len(policy.language.layers)).apply(plain)
    pruned = LayerSkip(kept=tuple(range(layers))).apply(pruned)
    return PatchSelect(k_final=patches).apply(pruned)


def _cost(name: str, execution: Execution, computed: float, patches: int) -> Cost:
    """Cost of an execution whose action blocks are computed at this share of the steps."""
    policy: Any = execution.policy
    language = policy.language.model
    device = policy.net.positional_embedding.device
    size = policy.policy.config.image_size
    batch = {
        **{
            key: torch.zeros(1, 1, 3, size, size, device=device)
            for key in policy.policy.config.image_features
        },
        "observation.language.tokens": torch.zeros(1, TEXT_TOKENS, dtype=torch.long, device=device),
        "observation.language.attention_mask": torch.ones(1, TEXT_TOKENS, dtype=torch.bool, device=device),
    }
    flops = count_flops(execution, batch)
    head = language.config.vocab_size * language.config.hidden_size
    full: dict[str, float] = {
        "vision": flops.encode - flops.language,
        "language": flops.language,
        "action": flops.denoise - (1 - computed) * sum(flops.blocks.values()),
    }
    paper = full | {"action": flops.denoise}
    paper["language"] += 2 * head * (TEXT_TOKENS + patches)
    vision = (policy.policy.vision_backbone, policy.policy.projector)
    skipped = [layer for i, layer in enumerate(language.layers) if i not in policy.language.layers]
    parameters = {
        "vision": sum(_count(module) for module in vision),
        "language": _count(language) - sum(_count(layer) for layer in skipped) + head,
        "action": _count(policy.policy.action_model),
    }
    return Cost(name, parameters, paper, full)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cost_table(rows: list[Cost]) -> str:
    """Parameters and FLOPs by module and plan as text."""
    base = rows[0]
    lines = [f"{'module':<12}{'params [M]':>12}{'GFLOP, paper':>15}{'GFLOP, run':>13}"]
    for module in base.parameters:
        lines.append(
            f"{module:<12}{base.parameters[module] / 1e6:>12.1f}{base.paper[module] / 1e9:>15.2f}"
            f"{base.full[module] / 1e9:>13.2f}"
        )
    lines += ["", f"{'plan':<12}{'params [B]':>12}{'FLOPs, paper':>15}{'FLOPs, run':>13}"]
    for row in rows:
        paper, full = (
            sum(getattr(row, way).values()) / sum(getattr(base, way).values()) for way in ("paper", "full")
        )
        lines.append(f"{row.name:<12}{sum(row.parameters.values()) / 1e9:>12.2f}{paper:>15.1%}{full:>13.1%}")
    return "\n".join(lines)
