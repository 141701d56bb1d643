"""Qwen3-VL's pictures: how many there are and of which size, and its vision tower over its own modules.

Sizes of pictures are shapes of what follows, so they are read from the device once a chunk (`Pictures.read`),
before anything is computed, and with them whether anything is padding; transformers' own forward reads some
sixty times. What depends on sizes alone is made once for each (`Tables`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from vivace.policies.batch import Batch
from vivace.policies.errors import ObservationMismatch

_NEEDED = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class Pictures:
    """The pictures of a batch of observations, which have as many each, and of the same sizes."""

    sizes: tuple[tuple[int, int, int], ...]
    """Of every picture of one observation: time, height, width in patches before they are merged."""
    rows: int
    """Observations."""
    merge: int
    """Patches that become one, in each direction."""
    is_padded: bool
    """Whether a prompt is padded."""

    @classmethod
    def read(cls, batch: Batch, image_token: int, merge: int) -> "Pictures":
        """Read them off a batch as Qwen's processor makes it: the one time a chunk that the host waits.

        Args:
            batch: prompts (B, S), their masks, patches of all pictures, sizes of all pictures (n, 3).
            image_token: id that stands for a merged patch.
            merge: patches that become one, in each direction.

        Raises:
            ObservationMismatch: the preprocessor made none of it, or observations differ in their pictures.
        """
        if missing := [key for key in _NEEDED if not isinstance(batch.get(key), Tensor)]:
            raise ObservationMismatch(
                f"the checkpoint's preprocessor gives {', '.join(batch)}, but the policy needs "
                f"{', '.join(missing)} too; save the processors again by lerobot's make_pre_post_processors"
            )
        ids, grid = batch["input_ids"], batch["image_grid_thw"]
        facts = [grid.flatten(), (ids == image_token).sum(1), (batch["attention_mask"] == 1).all().view(1)]
        *numbers, is_whole = torch.cat([fact.long() for fact in facts]).tolist()
        n, rows = len(grid), len(ids)
        sizes = [tuple(numbers[3 * i : 3 * i + 3]) for i in range(n)]
        found = cls(tuple(sizes[: n // rows]), rows, merge, not is_whole)  # type: ignore[arg-type]
        if sizes != list(found.sizes) * rows or set(numbers[3 * n :]) != {found.n_patches}:
            raise ObservationMismatch(
                f"{rows} observations have pictures of {', '.join(map(str, sizes))} patches and "
                f"{', '.join(map(str, numbers[3 * n :]))} image tokens in their prompts; every observation "
                f"needs as many as the others, one token for {merge} x {merge} patches: give observations of "
                "one kind, and instructions without image tokens"
            )
        return found

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Merged patches of each picture of an observation."""
        return tuple(t * h * w // self.merge**2 for t, h, w in self.sizes)

    @property
    def n_patches(self) -> int:
        """Merged patches of an observation."""
        return sum(self.counts)

    def ended(self) -> Tensor:
        """How far the pictures that end among the first k patches move what follows, (n + 1,)."""
        moves = torch.zeros(self.n_patches + 1, dtype=torch.long)
        for end, (_, h, w) in zip(torch.tensor(self.counts).cumsum(0), self.sizes, strict=True):
            moves[end] = max(h, w) // self.merge
        return moves.cumsum(0)

    def places(self) -> Tensor:
        """How far each patch stands off its picture's start: time, row, column (3, n)."""
        parts = []
        for t, h, w in self.sizes:
            rows, columns = h // self.merge, w // self.merge
            row = torch.arange(rows).repeat_interleave(columns).repeat(t)
            column = torch.arange(columns).repeat(rows * t)
            parts.append(torch.stack([torch.zeros_like(row), row, column]))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Tables:
    """What depends on the sizes of pictures alone."""

    embedded: Tensor
    """Position embeddings of all patches (P, width)."""
    angles: tuple[Tensor, Tensor]
    """Cosines and sines of their positions."""
    ends: np.ndarray
    """Where pictures begin and end among them (n + 1,); no tensor, so that a traced graph knows it."""
    ended: Tensor
    places: Tensor
    """As of `Pictures`."""

    @classmethod
    @torch.compiler.disable
    def of(cls, visual: Any, pictures: Pictures, device: torch.device) -> "Tables":
        """Make them by transformers' own code; they may enter a backward pass."""
        grid = torch.tensor(pictures.sizes * pictures.rows)
        with torch.inference_mode(False), torch.no_grad():
            turns = visual.rot_pos_emb(grid)
            turns = torch.cat([turns, turns], dim=-1)
            lengths = (grid[:, 1] * grid[:, 2]).repeat_interleave(grid[:, 0])
            return cls(
                visual.fast_pos_embed_interpolate(grid),
                (turns.cos(), turns.sin()),
                torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).numpy(),
                pictures.ended().to(device),
                pictures.places().to(device),
            )


def look(visual: Any, pixels: Tensor, tables: Tables) -> tuple[Tensor, Sequence[Tensor]]:
    """Run a `Qwen3VLVisionModel`.

    Args:
        visual: transformers' model.
        pixels: patches of all pictures (P, 3 x time x height x width).
        tables: of their sizes.

    Returns:
        Merged patches (P / merge^2, D), and the features of its earlier layers, of the same shape.
    """
    h = visual.patch_embed(pixels.type(visual.dtype)) + tables.embedded
    levels, features = list(visual.deepstack_visual_indexes), []
    is_flash = is_flash_attention_requested(visual.config)  # else transformers asks but for its numbers
    ends = torch.from_numpy(tables.ends) if is_flash else tables.ends
    for i, block in enumerate(visual.blocks):
        h = block(h, cu_seqlens=ends, position_embeddings=tables.angles)
        if i in levels:
            features.append(visual.deepstack_merger_list[levels.index(i)](h))
    return visual.merger(h), features
