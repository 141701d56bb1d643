"""lerobot's `pi0_fast` as a `TokenPolicy`: SigLIP and Gemma read images and text, FAST tokens are written.

Patches and text see each other, action tokens see both and those before them. Chunks are as long as they are:
they end with "|". Decoded greedily the tokens are those of lerobot's own loop.
"""

from typing import Any

import torch
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.block import Runner, compute
from vivace.policies.forms import LanguageForm
from vivace.policies.language.decoding import Prefix
from vivace.policies.language.llama import StagedLlama
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import Layout, PatchSelector, PrefixRows, keep_all, token_mask
from vivace.policies.spec import ActionKind, PolicySpec
from vivace.policies.staged import Batch

_MASK, _TOKENS = "observation.language.attention_mask", "observation.language.tokens"


class StagedPI0Fast(LanguageForm):
    """A pi0_fast taken apart, over its own modules."""

    period = 1
    """FAST tokens have no fixed places."""

    def __init__(self, policy: Any, action_kinds: tuple[ActionKind, ...] = ()):
        config = policy.config
        self.policy = policy.eval()
        self._core = policy.model.paligemma_with_expert.paligemma
        self.language = StagedLlama(self._core.model.language_model)
        vision = self._core.config.vision_config
        self.n_patches = ((vision.image_size // vision.patch_size) ** 2,) * len(config.image_features)
        core = "model.paligemma_with_expert.paligemma.model"
        self.stages = {
            "vision": (f"{core}.vision_tower.vision_model.encoder", f"{core}.multi_modal_projector"),
            "language": (f"{core}.language_model.layers",),
        }
        self.n_tokens = config.max_decoding_steps
        tokenizer = policy._paligemma_tokenizer
        self.end_token = tokenizer.convert_tokens_to_ids("|")
        self._bos = tokenizer.bos_token_id
        self.vocabulary = self._core.lm_head.out_features
        self.action_ids = range(self.vocabulary)
        dim = config.output_features["action"].shape[0]
        self.spec = PolicySpec(
            type=config.type,
            action_dim=dim,
            horizon=config.n_action_steps,
            n_obs_steps=config.n_obs_steps,
            n_action_steps=config.n_action_steps,
            observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
            action_kinds=kinds_of_config(config, action_kinds, dim),
            blocks=(),
        )

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Prefix:
        """Read images and text once; their keys and values are kept."""
        model = self.policy.model
        cameras = self.policy.config.image_features
        seen = {key: batch[key] for key in cameras if key in batch}  # others are filled, and masked
        present = {key: value[:, 0] if value.ndim == 5 else value for key, value in seen.items()}
        images, has_image = self.policy._preprocess_images(present)
        bos = torch.full_like(batch[_TOKENS][:, :1], self._bos)
        ids = torch.cat([batch[_TOKENS], bos], dim=1)
        is_text = torch.cat([batch[_MASK].bool(), torch.ones_like(bos, dtype=torch.bool)], dim=1)
        h, is_there, sees, _, _ = model.embed_prefix_fast(images, has_image, ids, is_text)
        itself = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        layout = Layout(is_there.cumsum(1) - 1, sees | itself)  # padding sees itself: nobody sees padding
        rows: list[tuple[Tensor, Tensor]] = []
        hidden = self.language(
            self._typed(h),
            PrefixRows(self.n_patches, is_text, 0, layout),
            run,
            select,
            lambda keys, values: rows.append((keys, values)),
        )
        past = Past.of(
            [keys for keys, _ in rows],
            [values for _, values in rows],
            [_readable(is_there, is_text, keys.shape[2]) for keys, _ in rows],
            is_there.sum(1),
        )
        return Prefix(past, self._core.lm_head(hidden[:, -1]), ids, is_text)

    def said(self, context: Prefix) -> Tensor:
        """Return the logits of the first token (B, V)."""
        return context.logits

    def extend(
        self, tokens: Tensor, past: Past, tree: Tensor, depth: Tensor, run: Runner = compute
    ) -> tuple[Tensor, Past]:
        """Logits (B, T, V) of what follows each of T tokens; see `StagedLlama.extend`."""
        h = self._typed(self.policy.model.paligemma_with_expert.embed_language_tokens(tokens))
        hidden, past = self.language.extend(h, past, tree, depth, run)
        return self._core.lm_head(hidden), past

    def _typed(self, h: Tensor) -> Tensor:
        return h.to(self._core.model.language_model.layers[0].self_attn.q_proj.weight.dtype)

    def tokenize(self, actions: Tensor) -> Tensor:
        """No guesses (B, n) of normalised actions: FAST tokens of other actions stand at other places."""
        return torch.full((len(actions), self.n_tokens), -1, device=actions.device)

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Normalised actions (B, H, A) of tokens (B, n), by lerobot's own code."""
        return self.policy.detokenize_actions(
            tokens, action_horizon=self.spec.horizon, action_dim=self.spec.action_dim
        )


def _readable(is_there: Tensor, is_text: Tensor, length: int) -> Tensor:
    """Which rows of a layer may be looked at (B, length): all cameras' if no patch was dropped."""
    return is_there if length == is_there.shape[1] else token_mask(is_text, length)
