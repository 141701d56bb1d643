"""An action expert beside a language model: its rows look at that model's keys and values, and at each other.

Layer i of the expert reads what layer i of the language model wrote down, `Kept`. A layer is two blocks, the
residual branches `action.i.attn` and `action.i.mlp`; norms are inside, and the gate of a norm that is
modulated.

    branch(h) = gate * f(norm(h) (1 + scale) + shift),    scale, shift, gate = modulation (adaRMS, pi0.5)

Without a modulation a norm is the model's own, and there is no gate.
"""

import copy
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vivace.policies.block import Block
from vivace.policies.language.attention import Attention, Look, heads
from vivace.policies.language.llama import normed


class Kept(NamedTuple):
    """What a chunk's rows look at besides each other, once a chunk; a tree of tensors."""

    keys: tuple[Tensor, ...]
    """Of each layer (B, kv heads, S_l, d); layers behind a patch selection have fewer rows."""
    values: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    """What the chunk's T rows see of these and of themselves, as the attention is told it (B, 1, T, S + T);
    one for each S there is."""
    cos: Tensor
    """Of the rows' rotary positions (B, T, d)."""
    sin: Tensor

    def of(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a layer's attention reads: keys, values, the mask for as many, cosines and sines."""
        keys, rows = self.keys[layer], self.cos.shape[1]
        mask = next(mask for mask in self.masks if mask.shape[-1] == keys.shape[2] + rows)
        return keys, self.values[layer], mask, self.cos, self.sin


class ExpertLayer:
    """A layer of an expert of Gemma's form.

    Args:
        index: of the layer.
        module: transformers' layer; used, not copied.
        attention: how rows look at keys.
    """

    def __init__(self, index: int, module: Any, attention: Attention):
        self.index, self._module, self._attention = index, module, attention

    @property
    def blocks(self) -> tuple[Block, Block]:
        """Both branches; attention is given what `Kept.of` gives, and both a modulation if there is one."""
        return (
            Block(f"action.{self.index}.attn", self.attend),
            Block(f"action.{self.index}.mlp", self.feed_forward),
        )

    def looking(self, look: Look) -> Self:
        """Return a twin whose rows look at keys so."""
        twin = copy.copy(self)
        twin._attention = replace(self._attention, look=look)
        return twin

    @property
    def norms(self) -> tuple[Any, Any]:
        """The norms inside its branches."""
        return self._module.input_layernorm, self._module.post_attention_layernorm

    def attend(
        self,
        h: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """Branch (B, T, D) of a stream (B, T, D) that sees keys and values, and itself."""
        x, gate = modulated(self._module.input_layernorm, h, modulation)
        return gated(self._attended(x, keys, values, mask, cos, sin)[0], gate)

    def feed_forward(self, h: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Branch (B, T, D) of a stream (B, T, D)."""
        x, gate = modulated(self._module.post_attention_layernorm, h, modulation)
        return gated(self._module.mlp(x), gate)

    def written(
        self, h: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer on rows before the chunk's: the stream behind it, and keys and values with theirs."""
        x = normed(self._module.input_layernorm, h)
        out, keys, values = self._attended(x, keys, values, mask, cos, sin)
        h = h + out
        return h + self.feed_forward(h), keys, values

    def _attended(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        module, turn = self._module.self_attn, self._attention.rotate
        own = turn(heads(module.k_proj, x, module.head_dim), cos, sin)
        keys = torch.cat([keys, own], dim=2)
        values = torch.cat([values, heads(module.v_proj, x, module.head_dim)], dim=2)
        queries = turn(heads(module.q_proj, x, module.head_dim), cos, sin)
        return module.o_proj(self._attention.look(module, queries, keys, values, mask)), keys, values


def modulated(norm: Any, h: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Normalise a stream (B, T, D), and return the gate (B, 1, D); as lerobot's `PiGemmaRMSNorm` does.

    Args:
        norm: lerobot's.
        h: the stream.
        modulation: scale, shift and gate in one (B, 3 D), what the norm's own linear layer makes of the
            condition; None: there is none.
    """
    if modulation is None:
        return normed(norm, h), None
    scale, shift, gate = modulation.unsqueeze(1).chunk(3, dim=-1)
    x = norm._norm(h) * (1 + scale.float()) + shift.float()
    return x.to(h.dtype), gate.to(h.dtype)


def gated(branch: Tensor, gate: Tensor | None) -> Tensor:
    """Return a branch times its gate, if it has one."""
    return branch if gate is None else branch * gate
