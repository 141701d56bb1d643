"""The action expert of lerobot's smolvla: which language layer each of its layers reads, and in which way."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.language.attention import Attention, heads
from vivace.policies.language.expert import ExpertLayer
from vivace.policies.language.smolvlm import attention_of


class Context(NamedTuple):
    """What the language stage leaves to the expert; S_l rows, fewer behind a layer that drops patches."""

    keys: tuple[Tensor, ...]
    """Of each language layer that the expert reads, (B, heads, S_l, d)."""
    values: tuple[Tensor, ...]
    there: tuple[Tensor, ...]
    """Which rows are not padding, (B, S_l) bool; one for each S_l there is."""
    position: Tensor
    """Of the first action (B, 1)."""


class Attended(NamedTuple):
    """What the layers of the expert look at."""

    keys: tuple[Tensor, ...]
    """Of each of them, (B, heads, S_l, d)."""
    values: tuple[Tensor, ...]
    there: tuple[Tensor, ...]
    """Rows that every action sees, (B, 1, 1, S_l) bool; of layers that cross."""
    beside: tuple[Tensor, ...]
    """Rows, and actions, that each action sees, (B, 1, n, S_l + n) bool; of layers that do not."""
    angles: tuple[Tensor, ...]
    """Cosines and sines (B, n, d / 2) of the actions' positions; of layers that do not."""


class SmolExpertLayer(ExpertLayer):
    """A layer beside the actions' own keys (self-attention), or one that looks at the language model's alone.

    Args:
        index: of the layer.
        module: transformers' layer; used, not copied.
        attention: how rows look at keys.
        reads: index of the language layer whose keys and values it looks at.
        crosses: it looks at them alone, as its own matrices turn them.
    """

    def __init__(self, index: int, module: Any, attention: Attention, reads: int, crosses: bool):
        super().__init__(index, module, attention)
        self.reads, self.crosses = reads, crosses

    def given(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the language model's keys and values (B, heads, S, d) as it looks at them."""
        if not self.crosses:
            return keys, values
        module, kind = self._module.self_attn, self._module.input_layernorm.weight.dtype
        flat = (rows.transpose(1, 2).flatten(2).to(kind) for rows in (keys, values))
        k, v = (
            heads(proj, rows, module.head_dim)
            for proj, rows in zip((module.k_proj, module.v_proj), flat, strict=True)
        )
        return k, v

    def _attended(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.crosses:
            return super()._attended(x, keys, values, mask, cos, sin)
        module = self._module.self_attn
        queries = self._attention.rotate(heads(module.q_proj, x, module.head_dim), cos, sin)
        return module.o_proj(self._attention.look(module, queries, keys, values, mask)), keys, values


def expert_layers(policy: Any) -> tuple[SmolExpertLayer, ...]:
    """Layers of the expert, and the language layer that each of them reads, by lerobot's rules.

    Raises:
        UnsupportedPolicy: lerobot's own forward fails of such a policy.
    """
    config, vlm = policy.config, policy.model.vlm_with_expert
    if not config.use_cache:
        raise _unrunnable(
            "with use_cache=false its expert is given no keys and values; set use_cache to true"
        )
    step = vlm.num_vlm_layers // vlm.num_expert_layers
    every, text = vlm.self_attn_every_n_layers, vlm.config.text_config
    attention, found = attention_of(vlm), []
    for i in range(vlm.num_vlm_layers):
        crosses = "cross" in vlm.attention_mode and not (every > 0 and i % every == 0)
        j, has_none = divmod(i, step)
        if has_none:
            if not crosses:
                raise _unrunnable(
                    f"its language layer {i} has no layer of the expert beside it, and would be looked at by "
                    "one; change self_attn_every_n_layers or num_expert_layers"
                )
            continue
        layer = vlm.lm_expert.layers[j]
        width = text.num_key_value_heads * text.head_dim if crosses else vlm.expert_hidden_size
        made_for = layer.self_attn.k_proj.in_features
        if made_for != width:
            raise _unrunnable(
                f"layer {j} of its expert was made for keys of {made_for} numbers and is given {width}; "
                "change self_attn_every_n_layers or num_expert_layers"
            )
        found.append(SmolExpertLayer(j, layer, attention, i, crosses))
    return tuple(found)


def _unrunnable(why: str) -> UnsupportedPolicy:
    return UnsupportedPolicy(f"policy 'smolvla' cannot be run as it is configured, by lerobot neither: {why}")


def earlier(n: int, like: Tensor) -> Tensor:
    """Which of n actions each of them sees (1, n, n): itself and those before it."""
    rows = torch.arange(n, device=like.device)
    return (rows[:, None] >= rows)[None]


def into(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in its own dtype: SmolVLM's may be another than the rest's."""
    return linear(x.to(linear.weight.dtype))
