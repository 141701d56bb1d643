"""What lerobot's pi policies read before they act: pictures by SigLIP, then the prompt, by Gemma.

Patches and text see each other. Nobody sees padding, nor the pictures of cameras that an observation lacks:
the policy fills them, reads them as it reads others, and masks them. Neither moves anybody, since a position
is the count of what is there before it; so both may be left out.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from vivace.policies.batch import Batch
from vivace.policies.cameras import NO_LOOKS, Looks, look_at
from vivace.policies.errors import ObservationMismatch
from vivace.policies.language.prefix import Fresh, Layout, PrefixRows, token_mask
from vivace.policies.placement import Placement
from vivace.policies.shapes import are_fixed

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


def patches_of(policy: Any) -> tuple[int, ...]:
    """Patches of each camera that somebody has: of none of `empty_cameras`."""
    config, vision = policy.config, policy.model.paligemma_with_expert.paligemma.config.vision_config
    n_cameras = len(config.image_features) - config.empty_cameras
    return ((vision.image_size // vision.patch_size) ** 2,) * n_cameras


def prompt(batch: Batch, placement: Placement, is_trimmed: bool) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) of the prompt, and which of them are not padding.

    Args:
        batch: normalised observations.
        placement: where they are to be.
        is_trimmed: columns that are padding in every row are left out, unless shapes are fixed. How many, is
            read where the mask is: a device is waited for, once a chunk.
    """
    tokens, is_text = batch[_TOKENS], batch[_MASK].bool()
    if is_trimmed and not are_fixed():
        columns = is_text.any(0).nonzero()[:, 0]
        tokens, is_text = tokens[:, columns], is_text[:, columns]
    return placement.move(tokens), placement.move(is_text)


def pictures(policy: Any, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Pictures (B, 3, H, W) as the tower takes them: of each camera, and filled ones of those missing.

    Raises:
        ObservationMismatch: the batch has none.
    """
    cameras = policy.config.image_features
    seen = {key: batch[key] for key in cameras if key in batch}
    seen = {key: value[:, -1] if value.ndim == 5 else value for key, value in seen.items()}
    if not seen:
        raise ObservationMismatch(
            f"the observation has no picture; policy {policy.config.type!r} needs one at least of "
            f"{', '.join(cameras)}"
        )
    images, _ = policy._preprocess_images(seen)  # filled ones come last
    return dict(zip(seen, images, strict=False)), images[len(seen) :]


def look(policy: Any, batch: Batch, cameras: Collection[str], is_together: bool = False) -> Looks:
    """What the tower makes of the pictures of these cameras, (B, n, D) each."""
    found, _ = pictures(policy, {key: batch[key] for key in policy.config.image_features if key in cameras})
    return look_at(policy.model.paligemma_with_expert.embed_image, found, is_together)


def embedded(
    policy: Any,
    batch: Batch,
    tokens: Tensor,
    is_text: Tensor,
    reads_missing: bool,
    looks: Looks = NO_LOOKS,
    is_together: bool = False,
) -> tuple[Tensor, PrefixRows]:
    """Embeddings (B, S, D) of pictures and prompt, in what the language model computes in, and what they are.

    Rows of cameras that are missing count as padding of the text.

    Args:
        policy: lerobot's.
        batch: normalised observations.
        tokens: of the prompt (B, L).
        is_text: which of them are not padding.
        reads_missing: pictures of cameras that the batch lacks are read too, as lerobot does.
        looks: what the tower made of some cameras' pictures already.
        is_together: the tower runs on pictures of one size in one call.

    Raises:
        ObservationMismatch: the batch has no picture.
    """
    seen, filled = pictures(policy, batch)
    core = policy.model.paligemma_with_expert
    unread = {key: image for key, image in seen.items() if key not in looks}
    looks = {**looks, **look_at(core.embed_image, unread, is_together)}
    missing = [core.embed_image(image) for image in filled] if reads_missing else []
    patches = [*(looks[key] for key in seen), *missing]
    h = torch.cat([*patches, core.embed_language_tokens(tokens)], dim=1)
    n = patches[0].shape[1]
    n_missing = n * len(missing)
    is_text = torch.cat([is_text.new_zeros(len(is_text), n_missing), is_text], dim=1)
    is_there = token_mask(is_text, h.shape[1])
    itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)  # else padding would see nothing
    layout = Layout(is_there.cumsum(1) - 1, is_there[:, None] & is_there[:, :, None] | itself)
    return h.to(_kind(core)), PrefixRows((n,) * len(seen), is_text, 0, layout)


def prompt_rows(policy: Any, tokens: Tensor, is_text: Tensor, position: Tensor) -> Fresh:
    """What the language stage reads of a prompt alone, where pictures were read before.

    Args:
        policy: lerobot's.
        tokens: of the prompt (B, L).
        is_text: which of them are not padding.
        position: of the first of them (B, 1).
    """
    core = policy.model.paligemma_with_expert
    h = core.embed_language_tokens(tokens)
    itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
    among = is_text[:, None] & is_text[:, :, None] | itself
    return Fresh(h.to(_kind(core)), position + is_text.cumsum(1) - 1, among, is_text)


def _kind(core: Any) -> torch.dtype:
    """What the language model computes in."""
    kind: torch.dtype = core.paligemma.model.language_model.layers[0].self_attn.q_proj.weight.dtype
    return kind
