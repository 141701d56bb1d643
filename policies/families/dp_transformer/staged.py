"""`dp_transformer` in stages: encode -> per step condition -> `action.i.{self,cross,mlp}` -> head.

`StagedDPTransformer` runs the original `nn.TransformerDecoderLayer` branches and is bit-equal to the plain
network. `HoistedDPTransformer` computes once what x does not enter: the timestep's memory token and its
cross-attention keys and values for all steps (at construction), and the observation tokens' for all layers
(once a chunk). It is equal to 1e-5, since matrix products are then done in other shapes.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.families.dp_transformer.policy import DPTransformerPolicy
from vivace.policies.forms import CausalForm, SeeingForm, policy_spec
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing, make_sampler
from vivace.policies.spec import ActionKind
from vivace.policies.staged import Batch


class StagedDPTransformer(CausalForm, SeeingForm):
    """The transformer Diffusion Policy as a `DenoisingPolicy`, over its own modules."""

    chunk_method = "sample_actions"

    def __init__(self, policy: DPTransformerPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        self.policy = policy.eval()
        self.network = policy.model
        self.sampler = policy.sampler.on(self.placement.device)
        self.blocks = tuple(
            block
            for i, layer in enumerate(self.network.decoder.layers)
            for block in self._layer_blocks(i, layer)
        )
        config = policy.config
        self.stages = {"action": ("model.decoder",)}
        if config.image_features:
            self.stages["vision"] = ("rgb_encoders",)
        self.spec = policy_spec(config, self.blocks, action_kinds)

    def _layer_blocks(self, i: int, layer: nn.TransformerDecoderLayer) -> tuple[Block, ...]:
        mask, memory_mask = self.network.mask, self.network.memory_mask
        causal = mask is not None  # nn.TransformerDecoder detects it from the mask's values

        def attend_self(h: Tensor) -> Tensor:
            n = h.shape[1]
            return layer._sa_block(layer.norm1(h), None if mask is None else mask[:n, :n], None, causal)

        def attend_memory(h: Tensor, memory: Tensor) -> Tensor:
            seen = None if memory_mask is None else memory_mask[: h.shape[1]]
            return layer._mha_block(layer.norm2(h), memory, seen, None, False)

        def feed_forward(h: Tensor) -> Tensor:
            return layer._ff_block(layer.norm3(h))

        return (
            Block(f"action.{i}.self", attend_self),
            Block(f"action.{i}.cross", attend_memory),
            Block(f"action.{i}.mlp", feed_forward),
        )

    def see(
        self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all
    ) -> tuple[Tensor, ...]:
        """Features (B, To, n) of every camera."""
        return self.policy.seen(batch)

    def perceive(self, batch: Batch, seen: tuple[Tensor, ...]) -> Any:
        """Observation features (B, To, cond_dim)."""
        return self.policy.joined(batch, seen)

    def window(self, given: Batch) -> Batch:
        """What `encode` takes: the policy has put the window together itself."""
        return given

    def condition(self, step: Step, context: Any) -> tuple[Tensor, ...]:
        """Memory (B, 1 + To, n), the same for every layer."""
        memory = self.network.embed_condition(step.t.expand(context.shape[0]), context)
        return (memory,) * len(self.network.decoder.layers)

    @property
    def is_causal(self) -> bool:  # type: ignore[override]
        """Whether actions do not look at those behind them."""
        return self.network.mask is not None

    def _denoise(self, x: Tensor, condition: tuple[Tensor, ...], run: Runner) -> Tensor:
        """Predict noise (B, H, A) in x (B, H, A)."""
        h = self.network.embed_actions(x)
        for i, memory in enumerate(condition):
            attend_self, attend_memory, feed_forward = self.blocks[3 * i : 3 * i + 3]
            h = through(run, attend_self, h)
            h = through(run, attend_memory, h, memory)
            h = through(run, feed_forward, h)
        return self.network.head(self.network.ln_f(h))

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another diffusion sampler of the same process."""
        return make_sampler(name, n_steps, self.policy.schedule, spacing).on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> "HoistedDPTransformer":
        """Return a twin with the timestep's part of the condition precomputed for the sampler's steps."""
        return HoistedDPTransformer(self, sampler)


class _Memory(NamedTuple):
    """Keys and values of the observation tokens, all layers: (L, 2, B, heads, To, n / heads)."""

    observation: Tensor


class HoistedDPTransformer(StagedDPTransformer):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedDPTransformer, sampler: Sampler):
        if not isinstance(plain.network.encoder, nn.Sequential):
            raise UnsupportedPolicy(
                "hoisting needs a token-wise condition encoder, but this policy has n_cond_layers > 0: "
                "its timestep and observation tokens attend to each other; leave 'hoist' out of the plan"
            )
        super().__init__(plain.policy)
        self.spec, self.sampler = plain.spec, sampler
        attention = [layer.multihead_attn for layer in self.network.decoder.layers]
        n = self.network.pos_emb.shape[-1]
        self._heads = attention[0].num_heads
        with torch.no_grad():
            self._weight = torch.stack([a.in_proj_weight[n:] for a in attention])  # (L, 2n, n)
            self._bias = torch.stack([a.in_proj_bias[n:] for a in attention])  # (L, 2n)
            t = torch.stack([step.t for step in sampler.steps])
            tokens = self.network.time_emb(t).to(self._weight) + self.network.cond_pos_emb[0, 0]  # (S, n)
            memory = self.network.encoder(tokens)[:, None, None]  # (S, 1, 1, n)
            self._time = torch.stack([self._keys_values(m) for m in memory])  # (S, L, 2, 1, heads, 1, d)

    def _keys_values(self, memory: Tensor) -> Tensor:
        """Keys and values (L, 2, B, heads, tokens, d) of memory tokens (B, tokens, n) in every layer."""
        b, tokens, n = memory.shape
        kv = torch.einsum("btn,lmn->lbtm", memory, self._weight) + self._bias[:, None, None]
        return kv.reshape(-1, b, tokens, 2, self._heads, n // self._heads).permute(0, 3, 1, 4, 2, 5)

    def _layer_blocks(self, i: int, layer: nn.TransformerDecoderLayer) -> tuple[Block, ...]:
        attend_self, _, feed_forward = super()._layer_blocks(i, layer)
        attention, memory_mask = layer.multihead_attn, self.network.memory_mask
        n, heads = attention.embed_dim, attention.num_heads
        weight, bias = attention.in_proj_weight[:n], attention.in_proj_bias[:n]

        def attend_memory(h: Tensor, keys_values: Tensor) -> Tensor:
            q = F.linear(layer.norm2(h), weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            keys, values = keys_values.unbind(0)  # (B, heads, 1 + To, d)
            seen = None if memory_mask is None else memory_mask[: h.shape[1]]
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
            return attention.out_proj(out.transpose(1, 2).flatten(2))

        return attend_self, Block(f"action.{i}.cross", attend_memory), feed_forward

    def perceive(self, batch: Batch, seen: tuple[Tensor, ...]) -> _Memory:
        """Keys and values of the observation tokens."""
        features = super().perceive(batch, seen)
        tokens = self.network.cond_obs_emb(features) + self.network.cond_pos_emb[:, 1:]
        return _Memory(self._keys_values(self.network.encoder(tokens)))

    def condition(self, step: Step, context: _Memory) -> tuple[Tensor, ...]:
        """Keys and values (2, B, heads, 1 + To, d) of every layer."""
        observation = context.observation
        time = step.of(self._time, self.sampler).expand(*observation.shape[:4], 1, -1)
        return torch.cat([time, observation], dim=-2).unbind(0)
