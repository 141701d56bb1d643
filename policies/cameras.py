"""What a vision tower makes of the pictures of several cameras: one call each, or one for all of a size."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from vivace.policies.errors import UnsupportedPolicy

Looks = Mapping[str, Tensor]
"""Camera -> what a tower made of its picture (B, ...)."""
NO_LOOKS: Looks = MappingProxyType({})


def look_at(tower: Callable[[Tensor], Tensor], pictures: Looks, is_together: bool = False) -> Looks:
    """Run a tower on the pictures (B, 3, H, W) of cameras.

    Args:
        tower: of pictures (B, 3, H, W).
        pictures: by camera.
        is_together: pictures of one size in one call; else each camera's in a call of its own.
    """
    if not is_together:
        return {camera: tower(picture) for camera, picture in pictures.items()}
    sizes: dict[torch.Size, list[str]] = {}
    for camera, picture in pictures.items():
        sizes.setdefault(picture.shape, []).append(camera)
    found: dict[str, Tensor] = {}
    for cameras in sizes.values():
        seen = tower(torch.cat([pictures[camera] for camera in cameras]))
        found |= dict(zip(cameras, seen.chunk(len(cameras)), strict=True))
    return {camera: found[camera] for camera in pictures}


def pixels_of(picture: Tensor, n: int) -> Tensor:
    """Pixels (B, n, p) of each of n patches that tile square pictures (B, 3, H, H), row by row.

    Raises:
        UnsupportedPolicy: they do not.
    """
    side, (height, width) = math.isqrt(n), picture.shape[2:]
    if side * side != n or height != width:
        raise UnsupportedPolicy(
            f"{n} patches of a picture of {height} x {width} pixels do not tile a square, so it is not known "
            "which pixels are a patch's; leave static_patches out of the plan"
        )
    size = height // side
    cut = picture[:, :, : size * side, : size * side]
    tiles = cut.unflatten(3, (side, size)).unflatten(2, (side, size))  # (B, 3, side, size, side, size)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
