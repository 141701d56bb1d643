"""How rows look at keys and values: what differs between language models of one form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from lerobot.utils.constants import OPENPI_ATTENTION_MASK_VALUE
from torch import Tensor
from transformers.models.gemma.modeling_gemma import eager_attention_forward
from transformers.models.llama.modeling_llama import rotate_half
from typing_extensions import TypeIs

from vivace.policies.placement import Placement
from vivace.policies.spec import PolicySpec


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads (B, heads, S, d) by the angles of their positions (B, S, d), as transformers does."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]


def heads(proj: Any, x: Tensor, head_dim: int) -> Tensor:
    """Project a stream (B, S, D) and take it apart into heads (B, heads, S, d)."""
    return proj(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)


Look = Callable[[Any, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(the layer's own module, queries (B, heads, S, d), keys, values (B, kv heads, S', d), mask)
-> what was found (B, S, heads d). Without a mask every row sees those before it."""


@dataclass(frozen=True)
class Attention:
    """What turns queries, keys and values into what is found."""

    mask: Callable[[Tensor], Tensor]
    """Which rows each row sees (B or 1, 1, S, S') bool -> what `look` is told of it, once for all layers."""
    look: Look
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotated
    """Queries or keys (B, heads, S, d), cosines and sines (B, S, d) of positions -> the same, turned."""


@runtime_checkable
class AttendingPolicy(Protocol):
    """A policy whose language stage and action expert look at keys by matrix products, one after another.

    It tells `look` of its masks as bool, so that torch's own kernels (`FUSED`) can stand for them.
    """

    spec: PolicySpec
    placement: Placement

    @property
    def attend(self) -> Look:
        """How it looks."""

    def attending(self, look: Look) -> Self:
        """Return a twin that looks so; before its blocks are replaced."""


def looks_eagerly(policy: object) -> TypeIs[AttendingPolicy]:
    """Whether a policy looks at keys by matrix products."""
    return isinstance(policy, AttendingPolicy)


def _fused(module: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=module.num_key_value_groups > 1,
    )
    return out.transpose(1, 2).flatten(2)


def _added(seen: Tensor) -> Tensor:
    """0 where a row sees another, openpi's large negative number elsewhere; always float32."""
    return torch.where(seen, 0.0, OPENPI_ATTENTION_MASK_VALUE)


def _eager(module: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    out, _ = eager_attention_forward(module, queries, keys, values, mask, module.scaling)
    return out.flatten(2)


FUSED = Attention(lambda seen: seen, _fused)
"""torch's own kernels."""
EAGER = Attention(_added, _eager)
"""transformers' matrix products with an added mask, which it needs, as lerobot's pi0 and pi05 have them."""


def masks_of(attention: Attention, seen: Sequence[Tensor], among: Tensor) -> tuple[Tensor, ...]:
    """What K rows see of what was kept and of rows behind it, as an attention is told it; one a length.

    Args:
        attention: that is told.
        seen: which rows of each layer they see (B, S_l) bool.
        among: which of T rows behind those each of them sees (B or 1, K, T) bool.
    """
    lengths = {each.shape[1]: each for each in seen}
    rows = among.shape[1]
    return tuple(
        attention.mask(
            torch.cat([each[:, None].expand(-1, rows, -1), among.expand(len(each), -1, -1)], dim=2)[:, None]
        )
        for each in lengths.values()
    )
