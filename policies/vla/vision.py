"""Two vision transformers seen as one: DINOv2 and SigLIP patch features, concatenated and projected.

The vision side of OpenVLA (arXiv 2406.09246) and CogACT (2411.19650, section 3.1). Module and parameter
names are timm's and the original project's, so that its state dicts load as they are.
"""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize


class Eye(nn.Module):
    """The image statistics one backbone was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, featurizer: Any):
        super().__init__()
        data = featurizer.pretrained_cfg
        self.register_buffer("mean", torch.tensor(data["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) in [0, 1]."""
        return (image - self.mean) / self.std


class FusedVision(nn.Module):
    """DINOv2 and SigLIP side by side on the same image."""

    def __init__(
        self,
        image_size: int,
        dino: str = "vit_large_patch14_reg4_dinov2.lvd142m",
        siglip: str = "vit_so400m_patch14_siglip_224",
        dino_options: dict[str, Any] | None = None,
        siglip_options: dict[str, Any] | None = None,
    ):
        """Build both backbones with random weights.

        Args:
            image_size: edge of the square input of both [px].
            dino: timm's name of the first backbone.
            siglip: timm's name of the second backbone.
            dino_options: changes of its architecture, e.g. {"depth": 4, "embed_dim": 192}.
            siglip_options: likewise.
        """
        super().__init__()
        self.image_size = image_size
        self.dino_featurizer = _backbone(dino, image_size, dino_options)
        self.siglip_featurizer = _backbone(siglip, image_size, siglip_options)
        self.dino_eye, self.siglip_eye = Eye(self.dino_featurizer), Eye(self.siglip_featurizer)

    @property
    def width(self) -> int:
        """Channels of a fused patch."""
        return self.dino_featurizer.embed_dim + self.siglip_featurizer.embed_dim

    @property
    def n_patches(self) -> int:
        """Patches of one image."""
        return self.dino_featurizer.patch_embed.num_patches

    def forward(self, image: Tensor) -> Tensor:
        """Fused features (B, patches, width) of images (B, 3, H, W) in [0, 1]; DINOv2's channels first."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            size = [self.image_size, self.image_size]
            image = resize(image, size, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        return torch.cat(
            [
                patch_features(self.dino_featurizer, self.dino_eye(image)),
                patch_features(self.siglip_featurizer, self.siglip_eye(image)),
            ],
            dim=-1,
        )


class FusedProjector(nn.Module):
    """From fused patches to the language model's embeddings."""

    def __init__(self, vision_width: int, language_width: int):
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(vision_width, 4 * vision_width),
            nn.GELU(),
            nn.Linear(4 * vision_width, language_width),
            nn.GELU(),
            nn.Linear(language_width, language_width),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Project (B, N, vision width) to (B, N, language width)."""
        return self.projector(patches)


def patch_features(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Patch tokens (B, N, D) after the second-to-last block, without norm and prefix tokens.

    What timm's `get_intermediate_layers(image, n={depth - 2})` returns, without running the last block.
    """
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image))))
    blocks: Any = vit.blocks
    for block in blocks[:-1]:
        x = block(x)
    return x[:, vit.num_prefix_tokens :]


def _backbone(name: str, image_size: int, options: dict[str, Any] | None) -> Any:
    return timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size, **(options or {}))
