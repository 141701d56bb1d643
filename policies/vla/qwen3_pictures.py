"""What GR00T's preprocessor makes of pictures, as arithmetic that a graph can hold, bit for bit.

torchvision resizes uint8 pictures in whole numbers: along the rows, then along the columns, each a product
with a matrix of 16-bit weights whose sums are rounded to uint8 (ATen's `_compute_index_ranges_int16_weights`,
which is Pillow-SIMD's arithmetic). Those sums are whole numbers, so float64 holds them exactly, in any order,
and whatever a graph's other numbers are reduced to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 2.0
"""Pixels that a bicubic weight reaches to either side, where pictures are not made smaller."""
_SHARPNESS = -0.5
"""Of the bicubic curve, as antialiased resizing has it."""
_WEIGHT_BITS, _MOST_BITS = 15, 22


@dataclass(frozen=True)
class Resizing:
    """Bicubic resizing of one side of uint8 pictures, with antialiasing."""

    before: int
    """Pixels."""
    after: int

    def __call__(self, x: Tensor) -> Tensor:
        """Resize the last axis of whole numbers in [0, 255], float64."""
        if self.before == self.after:
            return x
        weights, bits = self._whole_weights()
        sums = x @ torch.tensor(weights, dtype=x.dtype, device=x.device)
        return torch.floor((sums + 2.0 ** (bits - 1)) / 2.0**bits).clamp(0, 255)

    def _whole_weights(self) -> tuple[list[list[int]], int]:
        """Weights (before, after) as whole numbers, and by which power of two they are too large."""
        columns = [self._weights(i) for i in range(self.after)]
        most, bits = max(max(column) for column in columns), 0
        while bits < _MOST_BITS and int(0.5 + most * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
            bits += 1
        whole = [[int(math.copysign(0.5, w) + w * 2**bits) for w in column] for column in columns]
        return [list(row) for row in zip(*whole, strict=True)], bits

    def _weights(self, i: int) -> list[float]:
        """Weights of all pixels before in pixel i after; they sum to 1."""
        scale = self.before / self.after
        stretch = max(scale, 1.0)
        reach, centre = _REACH * stretch, scale * (i + 0.5)
        first = max(int(centre - reach + 0.5), 0)
        end = min(int(centre + reach + 0.5), self.before)
        found = [_bicubic((j - centre + 0.5) * (1 / stretch)) for j in range(first, end)]
        total = sum(found)
        return [0.0] * first + [w / total for w in found] + [0.0] * (self.before - end)


def _bicubic(x: float) -> float:
    x, a = abs(x), _SHARPNESS
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


@dataclass(frozen=True)
class Framing:
    """How a picture becomes the one that the model reads."""

    is_squared: bool
    """Black bars make it square first."""
    edge: int
    """It is resized to a square of this side [pixels]."""
    crop: int
    """Side of what is left in its middle [pixels]."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths it is resized to then, one after the other."""

    def __call__(self, x: Tensor) -> Tensor:
        """Frame pictures (B, C, H, W) of whole numbers in [0, 255], float64."""
        if self.is_squared:
            x = F.pad(x, _bars(*x.shape[-2:]))
        x = _resized(x, (self.edge, self.edge))
        start = (self.edge - self.crop) // 2
        x = x[..., start : start + self.crop, start : start + self.crop]
        for size in self.sizes:
            x = _resized(x, size)
        return x


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = x.shape[-2:]
    return Resizing(height, size[0])(Resizing(width, size[1])(x).mT).mT


def _bars(height: int, width: int) -> list[int]:
    """Pixels that are added left, right, above, below."""
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return [left, side - width - left, top, side - height - top]


@dataclass(frozen=True)
class Patching:
    """How Qwen's image processor cuts pictures into patches."""

    patch: int
    """Side of a patch [pixels]."""
    merge: int
    """Patches that become one, in each direction."""
    repeats: int
    """Times that a picture stands for a film."""
    mean: tuple[float, ...]
    """Of each colour, in [0, 255]."""
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Cut pictures (B, C, H, W), whole numbers in [0, 255], into patches (B, n, numbers), float32."""
        mean, std = (torch.tensor(it, device=x.device).view(-1, 1, 1) for it in (self.mean, self.std))
        x = (x.float() - mean) / std
        (rows, colours, height, width), side = x.shape, self.patch
        high, wide = (n // (side * self.merge) for n in (height, width))
        x = x[:, None].expand(-1, self.repeats, -1, -1, -1)
        x = x.reshape(rows, self.repeats, colours, high, self.merge, side, wide, self.merge, side)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return x.reshape(rows, high * wide * self.merge**2, -1)


def patches_of(pictures: Sequence[Tensor], framing: Framing, patching: Patching) -> Tensor:
    """Return what Qwen's processor makes of one observation's pictures (1, C, H, W) in [0, 1]: (P, numbers).

    Args:
        pictures: of the cameras, in the order of the prompt.
        framing: what is done to each first.
        patching: how they are cut.
    """
    found = [patching(framing((picture.double() * 255).round())) for picture in pictures]
    return torch.cat([patches[0] for patches in found])
