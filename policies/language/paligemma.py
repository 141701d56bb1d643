"""What lerobot's pi policies read before they act: pictures by SigLIP, then the prompt, by Gemma.

Patches and text see each other. Nobody sees padding, nor the pictures of cameras that an observation lacks:
the policy fills them, reads them as it reads others, and masks them. Neither moves anybody, since a position
is the count of what is there before it; so both may be left out.
"""

from typing import Any

import torch
from torch import Tensor

from vivace.policies.batch import Batch
from vivace.policies.errors import ObservationMismatch
from vivace.policies.language.prefix import (
    Layout,
    PrefixRows,
    token_mask,
)
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


def embedded(
    policy: Any, batch: Batch, tokens: Tensor, is_text: Tensor, reads_missing: bool
) -> tuple[Tensor, PrefixRows]:
    """Embeddings (B, S, D) of pictures and prompt, in what the language model computes in, and what they are.

    Rows of cameras that are missing count as padding of the text.

    Args:
        policy: lerobot's.
        batch: normalised observations.
        tokens: of the prompt (B, L).
        is_text: which of them are not padding.
        reads_missing: pictures of cameras that the batch lacks are read too, as lerobot does.

    Raises:
        ObservationMismatch: the batch has no picture.
    """
    cameras = policy.config.image_features
    present = {key: batch[key] for key in cameras if key in batch}
    seen = {key: value[:, -1] if value.ndim == 5 else value for key, value in present.items()}
    if not seen:
        raise ObservationMismatch(
            f"the observation has no picture; policy {policy.config.type!r} needs one at least of "
            f"{', '.join(cameras)}"
        )
    images, _ = policy._preprocess_images(seen)  # filled ones come last
    images = images if reads_missing else images[: len(seen)]
    core = policy.model.paligemma_with_expert
    patches = [core.embed_image(image) for image in images]
    h = torch.cat([*patches, core.embed_language_tokens(tokens)], dim=1)
    n = patches[0].shape[1]
    n_missing = n * (len(images) - len(seen))
    is_text = torch.cat([is_text.new_zeros(len(is_text), n_missing), is_text], dim=1)
    is_there = token_mask(is_text, h.shape[1])
    itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)  # else padding would see nothing
    layout = Layout(is_there.cumsum(1) - 1, is_there[:, None] & is_there[:, :, None] | itself)
    weight = core.paligemma.model.language_model.layers[0].self_attn.q_proj.weight
    return h.to(weight.dtype), PrefixRows((n,) * len(seen), is_text, 0, layout)
