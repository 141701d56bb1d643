"""`token_vla` in stages: vision -> `language.i.{kv,attn,mlp}` over the prompt, then over action tokens."""

from collections.abc import Mapping

from torch import Tensor

from vivace.policies.block import Runner, compute
from vivace.policies.families.token_vla.policy import TokenVLAPolicy
from vivace.policies.forms import LanguageForm, policy_spec
from vivace.policies.language.decoding import Prefix
from vivace.policies.language.llama import Reads, StagedLlama
from vivace.policies.language.past import Past
from vivace.policies.language.prefix import PatchSelector, PrefixRows, keep_all, token_mask
from vivace.policies.spec import ActionKind
from vivace.policies.staged import Batch
from vivace.policies.vla.vla import LAST_LAYER

_MASK, _TOKENS = "observation.language.attention_mask", "observation.language.tokens"


class StagedTokenVLA(LanguageForm):
    """A token VLA as a `TokenPolicy`, over its own modules."""

    last_read = Reads.QUERY
    dead_work: Mapping[str, str] = LAST_LAYER
    chunk_method = "sample_actions"
    end_token = None
    """Chunks are of one length."""

    def __init__(self, policy: TokenVLAPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        self.policy = policy.eval()
        self.language = StagedLlama(policy.language)
        self.n_patches = policy.n_patches
        self.stages = {"vision": ("vision_backbone", "projector"), "language": ("language.layers",)}
        config = policy.config
        self._bins = config.bins.on(self.placement.device)
        self.n_tokens = config.n_tokens
        self.period = config.n_tokens // config.horizon
        self.bins = config.bins
        self.action_ids = range(config.bins.first, config.bins.end)
        self.vocabulary = config.language_vocabulary
        self.spec = policy_spec(config, (), action_kinds)

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Prefix:
        """Read the prompt once; its keys and values are kept."""
        is_text = batch[_MASK]
        prefix = PrefixRows(self.n_patches, is_text[:, 1:])
        h = self.policy.embed(batch)
        rows: list[tuple[Tensor, Tensor]] = []
        hidden = self.language(h, prefix, run, select, lambda keys, values: rows.append((keys, values)))
        past = Past.of(
            [keys for keys, _ in rows],
            [values for _, values in rows],
            [token_mask(is_text[:, 1:], keys.shape[2]) for keys, _ in rows],
            prefix.n_visual + is_text.sum(1),
        )
        return Prefix(past, self.policy.lm_head(self.language.query(hidden, prefix)), batch[_TOKENS], is_text)

    def said(self, context: Prefix) -> Tensor:
        """Return the logits of the first token (B, V)."""
        return context.logits

    def extend(
        self, tokens: Tensor, past: Past, tree: Tensor, depth: Tensor, run: Runner = compute
    ) -> tuple[Tensor, Past]:
        """Logits (B, T, V) of what follows each of T tokens; see `StagedLlama.extend`."""
        h = self.policy.language.embed_tokens(tokens)
        hidden, past = self.language.extend(h, past, tree, depth, run)
        return self.policy.lm_head(hidden), past

    def tokenize(self, actions: Tensor) -> Tensor:
        """Tokens (B, n) of normalised actions (B, H, A)."""
        return self._bins.encode(actions).flatten(1)

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Normalised actions (B, H, A) of tokens (B, n)."""
        return self._bins.decode(tokens).unflatten(1, (self.spec.horizon, -1))
