"""Structured dropout: train a language model so that layers and patches can be left out of it later.

Large pretrained language models are redundant by themselves; one trained from nothing on six tasks is not.
LayerDrop (arXiv 1909.11556) skips whole layers at random in training; dropping patches at random
(PatchDropout, arXiv 2208.07220; here inside the language model, after one of its first layers) does the same
for visual tokens. Every row of a batch draws its own share of both, from none to the given maximum, so that
the model is trained whole as well.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaModel

from vivace.policies.language.prefix import Layout

FIRST_LAYERS = 4
"""Patches are dropped after one of so many first layers."""


def thinned(
    model: LlamaModel, h: Tensor, n_visual: int, layer_drop: float, patch_drop: float, layout: Layout
) -> Tensor:
    """Return the final normalised stream (B, S, D), some layers skipped and some patches hidden in each row.

    Shapes do not depend on what is drawn: skipped layers are computed and left out, hidden patches masked.

    Args:
        model: transformers' model.
        h: embeddings (B, S, D) of BOS, `n_visual` patches and more.
        n_visual: patches of all cameras.
        layer_drop: largest share of the layers a row skips, 0 to 1.
        patch_drop: largest share of the patches a row loses, 0 to 1.
        layout: where the rows stand.
    """
    language: Any = model
    batch, length, _ = h.shape
    angles = language.rotary_emb(h, layout.positions)
    skipped = random_subset(batch, len(language.layers), layer_drop, h)
    hidden = torch.zeros(batch, length, dtype=torch.bool, device=h.device)
    hidden[:, 1 : 1 + n_visual] = random_subset(batch, n_visual, patch_drop, h)
    after = torch.randint(FIRST_LAYERS, (batch,), device=h.device)
    itself = torch.eye(length, dtype=torch.bool, device=h.device)
    for i, layer in enumerate(language.layers):
        unseen = hidden & (i > after)[:, None]
        seen = (layout.seen & ~unseen[:, None]) | itself
        out = layer(h, attention_mask=seen[:, None], position_embeddings=angles)
        h = torch.where(skipped[:, i, None, None], h, out)
    return language.norm(h)


def random_subset(batch: int, n: int, largest: float, like: Tensor) -> Tensor:
    """Random subsets (B, n) bool; the size of each is uniform on 0 ... largest n."""
    share = largest * torch.rand(batch, 1, device=like.device)
    rank = torch.rand(batch, n, device=like.device).argsort(1)
    return rank < (share * n + 0.5).floor()
