"""What lerobot's pi policies read before they act: pictures by SigLIP, then the prompt, by Gemma.

Patches and text see each other. Nobody sees padding, nor the pictures of cameras that an observation lacks:
the policy fills them, reads them as it reads others, and masks them. Neither moves anybody, since a position
is the count of what is there before it; so both may be left out.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from vivace.policies.batch import Batch
from vivace.policies.cameras import NO_LOOKS, Looks, look_at, pixels_of
from vivace.policies.errors import ObservationMismatch
from vivace.policies.language.prefix import Fresh, Layout, PrefixRows, token_mask
from vivace.policies.placement import Placement
from vivace.policies.shapes import are_fixed
from vivace.policies.vla.siglip import StagedSiglip

_CORE = "model.paligemma_with_expert.paligemma.model"
STAGES = {
    "vision": (f"{_CORE}.vision_tower.vision_model.encoder", f"{_CORE}.multi_modal_projector"),
    "language": (f"{_CORE}.language_model.layers",),
}
"""Where the stages that read are in a policy (`policies.staged.PolicyOfStages`)."""
_MASK, _TOKENS = "observation.language.attention_mask", "observation.language.tokens"


def dead_work(config: Any) -> dict[str, str]:
    """Name of a part of what is read -> why nobody misses it, of a policy's config."""
    n = len(config.image_features)
    return {
        "prompt_padding": f"a prompt is padded to {config.tokenizer_max_length} tokens, which are masked",
        "empty_cameras": f"pictures of cameras that an observation lacks, as of the {config.empty_cameras} "
        f"empty ones of {n}, are filled with -1, read, and masked",
    }


class PaliReader:
    """Embeds observations for the language stage of a pi policy.

    Args:
        policy: lerobot's.
        placement: where it computes.
        scaled: what the policy does to patches (B, n, D) besides.
    """

    def __init__(self, policy: Any, placement: Placement, scaled: Callable[[Tensor], Tensor] | None = None):
        self._policy, self._placement, self._scaled = policy, placement, scaled
        self._core: Any = policy.model.paligemma_with_expert
        self._paligemma: Any = self._core.paligemma.model
        tower = self._paligemma.vision_tower.vision_model
        self.vision = StagedSiglip(tower, lambda grid, like: tower.embeddings.position_ids)
        self._n_patches: int = tower.embeddings.num_patches

    def look(self, batch: Batch, cameras: Collection[str], is_together: bool = False) -> Looks:
        """What the tower makes of the pictures of these cameras, (B, n, D) each.

        Args:
            batch: normalised observations.
            cameras: whose pictures.
            is_together: pictures of one size in one call of the tower.
        """
        found, _ = self._pictures(
            {key: batch[key] for key in self._policy.config.image_features if key in cameras}
        )
        return look_at(self._tower, found, is_together)

    def pixels(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pixels of each patch (B, n, p) of each camera there is."""
        seen, _ = self._pictures(batch)
        return tuple(pixels_of(picture, self._n_patches) for picture in seen.values())

    def patches_of(self, cameras: Collection[str]) -> tuple[int, ...]:
        """Patches of the picture of each of these cameras."""
        return (self._n_patches,) * len(cameras)

    def prompt(self, batch: Batch, left_out: Collection[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) of the prompt, and which of them are not padding.

        Without "prompt_padding" columns that are padding in every row are left out, unless shapes are fixed.
        How many, is read where the mask is: a device is waited for, once a chunk.
        """
        tokens, is_text = batch[_TOKENS], batch[_MASK].bool()
        if "prompt_padding" in left_out and not are_fixed():
            columns = is_text.any(0).nonzero()[:, 0]
            tokens, is_text = tokens[:, columns], is_text[:, columns]
        return self._placement.move(tokens), self._placement.move(is_text)

    def __call__(
        self,
        batch: Batch,
        prompt: tuple[Tensor, Tensor],
        left_out: Collection[str],
        looks: Looks = NO_LOOKS,
        is_together: bool = False,
    ) -> tuple[Tensor, PrefixRows]:
        """What the language stage reads (B, S, D), pictures and prompt, and what it is.

        Rows of cameras that are missing count as padding of the text; they are read as lerobot reads them,
        unless "empty_cameras" are left out.

        Args:
            batch: normalised observations.
            prompt: tokens (B, L), and which of them are not padding.
            left_out: parts of the work that are left out.
            looks: what the tower made of some cameras' pictures already.
            is_together: as of `look`.

        Raises:
            ObservationMismatch: the batch has no picture.
        """
        tokens, is_text = prompt
        seen, filled = self._pictures(batch)
        unread = {key: image for key, image in seen.items() if key not in looks}
        looks = {**looks, **look_at(self._tower, unread, is_together)}
        missing = [] if "empty_cameras" in left_out else [self._tower(image) for image in filled]
        patches = [*(looks[key] for key in seen), *missing]
        h = torch.cat([*patches, self._core.embed_language_tokens(tokens)], dim=1)
        n = patches[0].shape[1]
        n_missing = n * len(missing)
        is_text = torch.cat([is_text.new_zeros(len(is_text), n_missing), is_text], dim=1)
        is_there = token_mask(is_text, h.shape[1])
        itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)  # else padding would see nothing
        layout = Layout(is_there.cumsum(1) - 1, is_there[:, None] & is_there[:, :, None] | itself)
        return self._cast(h), PrefixRows((n,) * len(seen), is_text, 0, layout)

    def beside(self, prompt: tuple[Tensor, Tensor], position: Tensor) -> Fresh:
        """What the language stage reads of a prompt alone, where pictures were read before.

        Args:
            prompt: tokens (B, L), and which of them are not padding.
            position: of the first of them (B, 1).
        """
        tokens, is_text = prompt
        h = self._core.embed_language_tokens(tokens)
        itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        among = is_text[:, None] & is_text[:, :, None] | itself
        return Fresh(self._cast(h), position + is_text.cumsum(1) - 1, among, is_text)

    def _pictures(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Pictures (B, 3, H, W) as the tower takes them: of each camera, and filled ones of those missing.

        Raises:
            ObservationMismatch: the batch has none.
        """
        cameras = self._policy.config.image_features
        seen = {key: batch[key] for key in cameras if key in batch}
        seen = {key: value[:, -1] if value.ndim == 5 else value for key, value in seen.items()}
        if not seen:
            raise ObservationMismatch(
                f"the observation has no picture; policy {self._policy.config.type!r} needs one at least of "
                f"{', '.join(cameras)}"
            )
        images, _ = self._policy._preprocess_images(seen)  # filled ones come last
        return dict(zip(seen, images, strict=False)), images[len(seen) :]

    def _tower(self, image: Tensor) -> Tensor:
        """Patches (B, n, D) of pictures (B, 3, H, W) of one camera, as of lerobot's `embed_image`."""
        patches = self._paligemma.multi_modal_projector(self.vision(image.float()))
        return (patches if self._scaled is None else self._scaled(patches)).to(image.dtype)

    def _cast(self, h: Tensor) -> Tensor:
        """In what the language stage computes in."""
        return h.to(self._paligemma.language_model.layers[0].self_attn.q_proj.weight.dtype)
