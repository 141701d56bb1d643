"""CogACT's action head: a diffusion transformer whose condition is one prepended token.

Architecture and parameter names of CogACT (arXiv 2411.19650, section 3.3; its `action_model`), sizes S, B, L.
"""

import math
from functools import partial
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

SIZES = {"small": (6, 384, 4), "base": (12, 768, 12), "large": (24, 1024, 16)}
"""Size -> (depth, width, heads)."""


class TimestepEmbedder(nn.Module):
    """Sinusoid of the timestep through two linear layers."""

    FREQUENCIES = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp: Any = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps (B,) as (B, width)."""
        half = self.FREQUENCIES // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angles = t[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """The cognition feature, or what stands in its place without a condition."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.linear = nn.Linear(in_width, width)
        self.uncondition = nn.Parameter(torch.zeros(1, in_width))

    def forward(self, feature: Tensor) -> Tensor:
        """Project (B, in_width) to (B, width)."""
        return self.linear(feature)


class ActionEmbedder(nn.Module):
    """One linear layer per action."""

    def __init__(self, action_dim: int, width: int):
        super().__init__()
        self.linear = nn.Linear(action_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, H, A) as (B, H, width)."""
        return self.linear(x)


class DiTBlock(nn.Module):
    """Two residual branches; norms have no parameters."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        gelu: Any = partial(nn.GELU, approximate="tanh")
        self.mlp = Mlp(width, 4 * width, act_layer=gelu)

    def attend(self, h: Tensor) -> Tensor:
        """Self-attention branch."""
        return self.attn(self.norm1(h))

    def feed_forward(self, h: Tensor) -> Tensor:
        """MLP branch."""
        return self.mlp(self.norm2(h))


class FinalLayer(nn.Module):
    """Norm and projection to actions."""

    def __init__(self, width: int, action_dim: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, action_dim)

    def forward(self, h: Tensor) -> Tensor:
        """Project (B, 1 + H, width) to (B, 1 + H, A)."""
        return self.linear(self.norm_final(h))


class DiT(nn.Module):
    """Noise predictor over a chunk of actions."""

    def __init__(
        self, action_dim: int, horizon: int, condition_width: int, depth: int, width: int, heads: int
    ):
        super().__init__()
        self.x_embedder = ActionEmbedder(action_dim, width)
        self.t_embedder = TimestepEmbedder(width)
        self.z_embedder = LabelEmbedder(condition_width, width)
        scale = width**-0.5
        self.positional_embedding = nn.Parameter(scale * torch.randn(horizon + 1, width))
        self.blocks: Any = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, action_dim)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in (self.x_embedder.linear, self.z_embedder.linear, *self.t_embedder.mlp[::2]):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.z_embedder.uncondition, std=0.02)
        nn.init.zeros_(self.final_layer.linear.weight)

    def condition(self, t: Tensor, z: Tensor) -> Tensor:
        """Condition token (B, width) from timesteps (B,) and cognition features (B, condition width)."""
        return self.t_embedder(t) + self.z_embedder(z)

    def embed(self, x: Tensor, c: Tensor) -> Tensor:
        """Stream (B, 1 + H, width) from noisy actions (B, H, A) and condition tokens (B, width)."""
        return torch.cat([c[:, None], self.x_embedder(x)], dim=1) + self.positional_embedding

    def head(self, h: Tensor) -> Tensor:
        """Predict noise (B, H, A) from the stream."""
        return self.final_layer(h)[:, 1:]

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Predict noise (B, H, A) in x (B, H, A) at timesteps (B,), given features z (B, condition width)."""
        h = self.embed(x, self.condition(t, z))
        for block in self.blocks:
            h = h + block.attend(h)
            h = h + block.feed_forward(h)
        return self.head(h)


class ActionModel(nn.Module):
    """The head under the name its checkpoints use, `net`."""

    def __init__(self, net: DiT):
        super().__init__()
        self.net = net
