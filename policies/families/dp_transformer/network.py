"""The transformer denoiser of Diffusion Policy (arXiv 2303.04137), as its authors' code builds it.

    tokens = W_in x_t + p                               (B, T, n)
    memory = MLP([e(t), W_obs o_1 … W_obs o_To] + p_c)  (B, 1 + To, n)
    eps    = W_out LN(decoder(tokens, memory))          (B, T, A)

The decoder is pre-norm `nn.TransformerDecoder`; attention over actions is causal, and action token i sees
memory token s iff i >= s - 1 (memory token 0 is the timestep). Parameter names are those of the original
project's checkpoints, so its state dicts load unchanged.

Source: real-stanford/diffusion_policy, `transformer_for_diffusion.py`.
Deviations: the encoder-only form (timestep as an action token, no observation) is not built.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class SinusoidalPosEmb(nn.Module):
    """Sinusoidal embedding [sin, cos] with frequencies exp(-i log(10000) / (half - 1))."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps (B,) as (B, dim)."""
        half = self.dim // 2
        scale = math.log(10000) / (half - 1)
        frequencies = torch.exp(torch.arange(half, device=t.device) * -scale)
        angles = t[:, None] * frequencies[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TransformerForDiffusion(nn.Module):
    """Predict the noise in a chunk of actions from timestep and observation features."""

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        *,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        n_layer: int = 8,
        n_head: int = 4,
        n_emb: int = 256,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.3,
        causal_attn: bool = True,
        n_cond_layers: int = 0,
    ):
        super().__init__()
        self.horizon, self.n_obs_steps = horizon, n_obs_steps
        n_cond = 1 + n_obs_steps
        layer: dict[str, Any] = {
            "d_model": n_emb,
            "nhead": n_head,
            "dim_feedforward": 4 * n_emb,
            "dropout": p_drop_attn,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.input_emb = nn.Linear(action_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, n_cond, n_emb))
        self.encoder: nn.Module
        if n_cond_layers > 0:
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**layer), n_cond_layers, enable_nested_tensor=False
            )
        else:
            self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), n_layer)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, action_dim)
        if causal_attn:
            i, s = torch.arange(horizon)[:, None], torch.arange(n_cond)[None, :]
            self.register_buffer("mask", _additive(i >= torch.arange(horizon)[None, :]))
            self.register_buffer("memory_mask", _additive(i >= s - 1))
        else:
            self.mask = self.memory_mask = None
        self.apply(_initialise)
        nn.init.normal_(self.pos_emb, std=0.02)
        nn.init.normal_(self.cond_pos_emb, std=0.02)

    def embed_condition(self, t: Tensor, cond: Tensor) -> Tensor:
        """Embed timesteps (B,) and observation features (B, To, cond_dim) as memory (B, 1 + To, n)."""
        tokens = torch.cat(
            [self.time_emb(t).to(self.cond_pos_emb).unsqueeze(1), self.cond_obs_emb(cond)], dim=1
        )
        return self.encoder(self.drop(tokens + self.cond_pos_emb))

    def embed_actions(self, x: Tensor) -> Tensor:
        """Embed noisy actions (B, T, A) as tokens (B, T, n)."""
        return self.drop(self.input_emb(x) + self.pos_emb[:, : x.shape[1]])

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Predict noise (B, T, A) in x (B, T, A) at timesteps t (B,) given cond (B, To, cond_dim)."""
        memory = self.embed_condition(t, cond)
        h = self.decoder(self.embed_actions(x), memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(h))

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """Parameters with and without weight decay: biases, norms and position embeddings have none."""
        decay: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            is_matrix = name.endswith("weight") and parameter.dim() >= 2
            (decay if is_matrix else plain).append(parameter)
        return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _additive(allowed: Tensor) -> Tensor:
    """Turn a boolean mask into one that is added to attention scores: 0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for matrices, zero for biases, identity for norms."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
