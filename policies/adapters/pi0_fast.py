"""lerobot's `pi0_fast` as a `TokenPolicy`: SigLIP and Gemma read images and text, FAST tokens are written.

Patches and text see each other, action tokens see both and those before them. Chunks are as long as they are:
they end with "|". Decoded greedily the tokens are those of lerobot's own loop.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.block import Runner, compute
from vivace.policies.forms import LackingForm, LanguageForm, VisionForm
from vivace.policies.language.decoding import Prefix
from vivace.policies.language.llama import Reads, StagedLlama
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import PatchSelector, keep_all, of_all_cameras, token_mask
from vivace.policies.spec import ActionKind, PolicySpec
from vivace.policies.staged import Batch
from vivace.policies.vla.pali_reader import STAGES, PaliReader, dead_work


class StagedPI0Fast(LackingForm, VisionForm, LanguageForm):
    """A pi0_fast taken apart, over its own modules."""

    last_read = Reads.QUERY
    period = 1
    """FAST tokens have no fixed places."""

    def __init__(self, policy: Any, action_kinds: tuple[ActionKind, ...] = ()):
        config = policy.config
        self.policy = policy.eval()
        self._core = policy.model.paligemma_with_expert.paligemma
        self.language = StagedLlama(self._core.model.language_model)
        self._reader = PaliReader(policy, self.placement, _scaled)
        self.stages = STAGES
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

    @property
    def dead_work(self) -> Mapping[str, str]:
        """What lerobot computes and nobody reads."""
        last = "of what leaves the last language layer the row of the prompt's last token is read alone"
        return {"last_layer": last, **dead_work(self.policy.config)}

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Prefix:
        """Read images and text once; their keys and values are kept."""
        tokens, is_text = self._reader.prompt(batch, self.left_out)
        bos = torch.full_like(tokens[:, :1], self._bos)
        ids = torch.cat([tokens, bos], dim=1)
        is_text = torch.cat([is_text, torch.ones_like(bos, dtype=torch.bool)], dim=1)
        h, prefix = self._reader(batch, (ids, is_text), self.left_out)
        select = of_all_cameras(select, self.n_patches)
        rows: list[tuple[Tensor, Tensor]] = []
        hidden = self.language(h, prefix, run, select, lambda keys, values: rows.append((keys, values)))
        past = Past.of(
            [keys for keys, _ in rows],
            [values for _, values in rows],
            [token_mask(prefix.is_text, keys.shape[2]) for keys, _ in rows],
            token_mask(prefix.is_text, h.shape[1]).sum(1),
        )
        return Prefix(past, self._core.lm_head(self.language.query(hidden, prefix)), ids, is_text)

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


def _scaled(patches: Tensor) -> Tensor:
    """Patches as lerobot's pi0_fast scales them there and back, which rounds them."""
    width = 2048**0.5
    return patches / width * width
