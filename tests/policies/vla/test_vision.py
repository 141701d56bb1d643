"""The vision side resizes pictures as OpenVLA's own processor does."""

import numpy as np
import torch
from PIL import Image

from vivace.policies.vla.vision import FusedVision

VIT = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}


def test_a_picture_of_another_size_is_resized_as_by_the_original():
    """A14: any picture becomes the square as a whole, bicubic, by PIL there; only rounding is between."""
    torch.manual_seed(0)
    vision = FusedVision(32, dino_options=VIT, siglip_options=VIT).eval()
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    square = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC))
    cut = picture[8:40, 16:48]
    with torch.no_grad():
        found, wanted, other = (
            vision(torch.from_numpy(it.copy()).movedim(-1, 0)[None] / 255) for it in (picture, square, cut)
        )
    assert (found - wanted).abs().max() < 0.05 < (found - other).abs().max()
