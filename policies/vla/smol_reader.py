"""What lerobot's smolvla reads before it acts: pictures by SigLIP, then the instruction, and the state last.

Patches and text see each other, the state sees them, they do not see it. Nobody sees padding, nor pictures
of cameras that an observation lacks or marks as padding: lerobot fills them, reads them and masks them.
"""

import copy
import math
from collections.abc import Collection
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import pad_vector
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from vivace.policies.batch import Batch
from vivace.policies.cameras import NO_LOOKS, Looks, look_at, pixels_of
from vivace.policies.errors import ObservationMismatch
from vivace.policies.language.prefix import Layout, PrefixRows
from vivace.policies.placement import Placement
from vivace.policies.shapes import are_fixed
from vivace.policies.vla.siglip import StagedSiglip
from vivace.policies.vla.smol_expert import into

_SPECIAL = 3
"""Tokens around a camera's patches, where there are some: two before, one behind."""
_MARK = "_padding_mask"
"""End of lerobot's name of which rows a camera counts in."""


class SmolReader:
    """Embeds observations for the language stage of lerobot's smolvla.

    Args:
        policy: lerobot's.
        placement: where it computes.
    """

    is_together = False
    """Whether pictures of one size go through the tower in one call."""

    def __init__(self, policy: Any, placement: Placement):
        self._policy, self._core, self._vlm = policy, policy.model, policy.model.vlm_with_expert
        tower = self._vlm.get_vlm_model().vision_model
        self.vision = StagedSiglip(tower, partial(_places, tower.embeddings.num_patches_per_side))
        ids = (self._core.global_image_start_token, self._core.image_end_token)
        self._special = tuple(placement.move(each) for each in ids)

    def together(self) -> Self:
        """Return a twin that runs its tower on pictures of one size in one call."""
        twin = copy.copy(self)
        twin.is_together = True
        return twin

    def look(self, batch: Batch, cameras: Collection[str]) -> Looks:
        """What the tower makes of the pictures of these cameras, (B, n, D) each."""
        chosen = {key: batch[key] for key in self._policy.config.image_features if key in cameras}
        images, _ = self._policy.prepare_images(chosen)
        pictures = dict(zip(chosen, images, strict=False))  # those of missing cameras are filled, and last
        return look_at(self._tower, pictures, self.is_together)

    def pixels(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pixels of each patch (B, n, p) of each camera there is; none of the tokens around them."""
        images, _ = self._policy.prepare_images(batch)
        around = 0 if not self._policy.config.add_image_special_tokens else _SPECIAL
        n_present = sum(key in batch for key in self._policy.config.image_features)
        found = []
        for image in images[:n_present]:
            tiles = pixels_of(image, _n_patches(self._vlm.get_vlm_model(), *image.shape[2:]))
            found.append(F.pad(tiles, (0, 0, around - 1, 1)) if around else tiles)
        return tuple(found)

    def patches_of(self, cameras: Collection[str]) -> tuple[int, ...]:
        """Patches of the picture of each of these cameras, and tokens around them."""
        config = self._policy.config
        sizes = [config.resize_imgs_with_padding or config.image_features[key].shape[1:] for key in cameras]
        around = _SPECIAL * config.add_image_special_tokens
        return tuple(_n_patches(self._vlm.get_vlm_model(), *size) + around for size in sizes)

    def felt(self, batch: Batch) -> Tensor:
        """What the language stage reads of the state (B, 1, D)."""
        return self._cast(into(self._core.state_proj, self._state(batch))[:, None])

    def __call__(
        self,
        batch: Batch,
        left_out: frozenset[str],
        looks: Looks = NO_LOOKS,
        has_state: bool = True,
    ) -> tuple[Tensor, PrefixRows, Tensor]:
        """What the language stage reads (B, S, D), what it is, and which rows are there (B, S).

        Args:
            batch: normalised observations.
            left_out: parts of the work that are left out.
            looks: what the tower made of some cameras' pictures already.
            has_state: it ends with the state, and padding if there is any.

        Raises:
            ObservationMismatch: there is no picture.
        """
        cameras = self._cameras(batch, "empty_cameras" in left_out, looks)
        n_present = sum(key in batch for key in self._policy.config.image_features)
        counts = tuple(sum(rows.shape[1] for rows, _ in parts) for parts in cameras[:n_present])
        tokens, is_text = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
        if "prompt_padding" in left_out and not are_fixed():  # a wait for the device, once a chunk
            n = 1 + max((i for i, is_read in enumerate(is_text.any(0).tolist()) if is_read), default=0)
            tokens, is_text = tokens[:, :n], is_text[:, :n]
        text = self._vlm.embed_language_tokens(tokens)
        parts = [*sum(cameras, []), (text * math.sqrt(text.shape[-1]), is_text)]
        if has_state:
            state = into(self._core.state_proj, self._state(batch))[:, None]
            parts.append((state, is_text.new_ones(state.shape[:2])))
        h = torch.cat([rows for rows, _ in parts], dim=1)
        there = torch.cat([mask for _, mask in parts], dim=1)
        is_padded = has_state and "prompt_padding" not in left_out
        n, length = there.shape[1], self._core.prefix_length if is_padded else 0
        n_before = n - has_state
        is_late = torch.arange(max(n, length), device=h.device) >= n_before  # the state sees all, nobody it
        h, there = (F.pad(h, (0, 0, 0, len(is_late) - n)), F.pad(there, (0, len(is_late) - n)))
        sees = (is_late[None, :] <= is_late[:, None]) & (there[:, None, :] & there[:, :, None])
        prefix = PrefixRows(counts, there[:, sum(counts) :], 0, Layout(there.cumsum(1) - 1, sees))
        return self._cast(h), prefix, there

    def _cast(self, h: Tensor) -> Tensor:
        """In what the language stage computes in."""
        return h.to(self._vlm.get_vlm_model().text_model.norm.weight.dtype)

    def _cameras(self, batch: Batch, leaves_out: bool, looks: Looks) -> list[list[tuple[Tensor, Tensor]]]:
        """Rows of each camera, those that lerobot fills behind the others, and which of them are there."""
        config = self._policy.config
        present = [key for key in config.image_features if key in batch]
        if not present:
            raise ObservationMismatch(
                f"the observation has no picture; policy {config.type!r} needs one at least of "
                f"{', '.join(config.image_features)}"
            )
        images, masks = self._policy.prepare_images(batch)
        dark = _dark(batch, present) if leaves_out and not are_fixed() else set()
        pictures = dict(zip(present, images, strict=False))
        unread = {key: image for key, image in pictures.items() if key not in looks and key not in dark}
        looks = {**looks, **look_at(self._tower, unread, self.is_together)}
        cameras = []
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            is_missing = i >= len(present)
            patches = []
            if is_missing and not leaves_out:
                patches.append(_masked(self._tower(image), mask))
            elif not is_missing:
                seen = self._zeros(image) if present[i] in dark else looks[present[i]]
                patches.append(_masked(seen, mask))
            if config.add_image_special_tokens:  # they are there even where the camera is not
                ends = [
                    self._vlm.embed_language_tokens(ids)[None].expand(len(image), -1, -1)
                    for ids in self._special
                ]
                first, last = ((rows, mask.new_ones(rows.shape[:2])) for rows in ends)
                patches = [first, *patches, last]
            cameras.append(patches)
        return cameras

    def _tower(self, image: Tensor) -> Tensor:
        """Patches (B, n, D) of pictures (B, 3, H, W) of one camera."""
        patches = self._vlm.get_vlm_model().connector(self.vision(image))
        width = patches.shape[-1]
        scale = torch.full((), width**0.5, dtype=patches.dtype, device=patches.device)
        return patches * scale

    def _zeros(self, image: Tensor) -> Tensor:
        """Patches (B, n, D) of pictures (B, 3, H, W) that nobody reads."""
        vlm = self._vlm.get_vlm_model()
        return image.new_zeros(
            len(image), _n_patches(vlm, *image.shape[2:]), vlm.text_model.config.hidden_size
        )

    def _state(self, batch: Batch) -> Tensor:
        """State (B, max_state_dim), as lerobot's policy prepares it."""
        state = batch[OBS_STATE]
        state = state[:, -1] if state.ndim > 2 else state
        if self._policy.config.adapt_to_pi_aloha:
            state = self._policy._pi_aloha_decode_state(state.clone())
        return pad_vector(state, self._policy.config.max_state_dim)


def _masked(patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (B, n, D), and whether they are there (B, n), as their camera is (B,)."""
    return patches, mask[:, None].expand(-1, patches.shape[1])


def _dark(batch: Batch, cameras: list[str]) -> set[str]:
    """Cameras that are marked as padding in every row; asks the device once if any is marked at all."""
    marked = [key for key in cameras if f"{key}{_MARK}" in batch]
    if not marked:
        return set()
    has_any = torch.stack([batch[f"{key}{_MARK}"].bool() for key in marked]).any(1).tolist()
    return {key for key, is_seen in zip(marked, has_any, strict=True) if not is_seen}


def _n_patches(vlm: Any, height: int, width: int) -> int:
    """Patches that are left of a picture where they are merged."""
    patch = vlm.vision_model.patch_size
    return (height // patch) * (width // patch) // vlm.connector.scale_factor**2


def _places(side: int, grid: tuple[int, int], like: Tensor) -> Tensor:
    """Places (1, N) in a table of `side` x `side` of patches of pictures of any size."""
    rows, columns = (_buckets(n, side, like) for n in grid)
    return (rows[:, None] * side + columns).flatten()[None]


def _buckets(n: int, side: int, like: Tensor) -> Tensor:
    """Which of `side` places each of n patches in a row stands at, with the rounding of SmolVLM's tower."""
    boundaries = torch.arange(1 / side, 1.0, 1 / side, device=like.device)
    width = 1.0 / torch.full((), n, device=like.device)
    at = torch.arange(n, device=like.device, dtype=torch.float32) * width
    return torch.bucketize(at.clamp(max=1.0 - 1e-6).to(like.dtype), boundaries, right=True)
