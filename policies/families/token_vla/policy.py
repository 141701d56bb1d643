"""A vision-language-action model that writes actions as tokens, `--policy.type=token_vla`.

OpenVLA's form (arXiv 2406.09246): two vision backbones, a projector, a Llama; each action dimension is one of
256 bins, one token each. A chunk is written action after action, H · A tokens in all.
Decoding here is greedy and plain; faster ways go through `token_vla_staged`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn

from vivace.policies.errors import BadSetting
from vivace.policies.language.action_bins import ActionBins
from vivace.policies.language.prefix import Layout
from vivace.policies.vla.structured_dropout import random_subset
from vivace.policies.vla.vla import VisionLanguage, VisionLanguageConfig, make_vla_processors, query_row


@PreTrainedConfig.register_subclass("token_vla")
@dataclass
class TokenVLAConfig(VisionLanguageConfig):
    """Settings of a token VLA; defaults are OpenVLA 7B."""

    horizon: int = 1
    """Actions of a chunk."""
    n_action_steps: int = 1
    n_action_bins: int = 256
    vocabulary_end: int = 32000
    """The vocabulary's size without padding: action tokens are the last ids below it."""
    token_noise: float = 0.0
    """Training: each row reads a random share of its earlier action tokens wrong, up to this one, 0 to 1."""

    def __post_init__(self):
        """Check that the action tokens fit."""
        super().__post_init__()
        if not 0 <= self.token_noise <= 1:
            raise BadSetting(f"token_noise={self.token_noise}; needed: 0 <= token_noise <= 1")
        if self.vocabulary_end > self.language_vocabulary:
            raise BadSetting(
                f"vocabulary_end={self.vocabulary_end}, but the language model knows "
                f"{self.language_vocabulary} ids; action tokens must be among them"
            )
        clash = [
            token for token in (self.bos_token, *self.prompt_suffix)
            if self.bins.first <= token < self.vocabulary_end
        ]  # fmt: skip
        if clash:
            raise BadSetting(
                f"a vocabulary of {self.vocabulary_end} ids is too small for {self.n_action_bins} action "
                f"bins: id {clash[0]} of the prompt would be an action; enlarge it"
            )

    @property
    def bins(self) -> ActionBins:
        """Between actions and ids."""
        return ActionBins(self.n_action_bins, self.vocabulary_end)

    @property
    def n_tokens(self) -> int:
        """Tokens of a chunk."""
        return self.horizon * self.action_feature.shape[0]


class TokenVLAPolicy(VisionLanguage, PreTrainedPolicy):
    """Vision, language, action tokens."""

    config_class = TokenVLAConfig
    name = "token_vla"

    def __init__(self, config: TokenVLAConfig, **kwargs: Any):
        super().__init__(config)
        config.validate_features()
        self.config: TokenVLAConfig = config
        self.build_backbone(config)
        length = self.n_visual + config.max_tokens + config.n_tokens
        if length > config.max_positions:
            raise BadSetting(
                f"a chunk of {config.horizon} actions makes {config.n_tokens} tokens; with {self.n_visual} "
                f"patches and {config.max_tokens} of text they are {length}, the language model reads at "
                f"most {config.max_positions}; shorten the chunk (horizon)"
            )
        self.lm_head = nn.Linear(config.language_width, config.language_vocabulary, bias=False)
        self.reset()

    def tokenize(self, actions: Tensor) -> Tensor:
        """Tokens (B, H · A) of normalised actions (B, H, A), action after action."""
        return self.config.bins.encode(actions).flatten(1)

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Normalised actions (B, H, A) of tokens (B, H · A)."""
        return self.config.bins.decode(tokens).unflatten(1, (self.config.horizon, -1))

    def logits(self, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """Logits (B, n, V) of each of n action tokens, given the prompt and the tokens before it."""
        return self.lm_head(self.hidden(batch, tokens)[0])

    def hidden(self, batch: dict[str, Tensor], *chunks: Tensor) -> tuple[Tensor, ...]:
        """Final stream (B, n, D) that each of n action tokens is read from, given the tokens before it.

        Several chunks are read behind one prompt; they do not see each other.

        Args:
            batch: images and the prompt's tokens.
            *chunks: tokens (B, n); the last one is not read.
        """
        is_text, h = batch[OBS_LANGUAGE_ATTENTION_MASK], self.embed(batch)
        read = [tokens[:, :-1] for tokens in chunks]
        widths = [tokens.shape[1] for tokens in read]
        hidden = self.read(
            torch.cat([h, self.language.embed_tokens(torch.cat(read, dim=1))], dim=1),
            _layout(self.n_visual, is_text, widths),
        )
        query = query_row(hidden[:, : h.shape[1]], is_text)[:, None]
        behind = hidden[:, h.shape[1] :].split(widths, dim=1)
        return tuple(torch.cat([query, rows], dim=1) for rows in behind)

    def _misread(self, tokens: Tensor) -> Tensor:
        """Action tokens (B, n), in each row a random share of them replaced by any.

        Neighbouring actions are so alike that a model can predict all but the first from the one before, and
        hardly needs to look; what it reads must not be trusted too much. It also makes guesses settle sooner.
        """
        if not self.config.token_noise:
            return tokens
        bins = self.config.bins
        wrong = random_subset(len(tokens), tokens.shape[1], self.config.token_noise, tokens)
        return torch.where(wrong, torch.randint_like(tokens, bins.first, bins.end), tokens)

    @torch.no_grad()
    def sample_actions(self, batch: dict[str, Tensor]) -> Tensor:
        """Normalised chunks (B, H, A), decoded greedily, everything read again for every token."""
        rows = len(batch[OBS_LANGUAGE_TOKENS])
        tokens = torch.zeros(rows, self.config.n_tokens, dtype=torch.long, device=self.lm_head.weight.device)
        for i in range(self.config.n_tokens):
            tokens[:, i] = self.logits(batch, tokens[:, : i + 1])[:, -1].argmax(-1)
        return self.detokenize(tokens)

    def loss(self, batch: dict[str, Tensor], actions: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the action tokens; and the stream of the prompt's last token (B, D)."""
        tokens = self.tokenize(actions)
        (hidden,) = self.hidden(batch, self._misread(tokens) if self.training else tokens)
        logits = self.lm_head(hidden).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), hidden[:, 0]


def _layout(n_visual: int, is_text: Tensor, widths: list[int]) -> Layout:
    """Layout of a prompt, padding on its right, and of blocks of so many tokens right behind it."""
    batch, device = len(is_text), is_text.device
    length = n_visual + is_text.shape[1]
    places = torch.arange(length + sum(widths), device=device)
    block = torch.repeat_interleave(  # 0: the prompt
        torch.arange(len(widths) + 1, device=device),
        torch.tensor([length, *widths], device=device),
        output_size=len(places),
    )
    inside = torch.cat([places[:length], *(torch.arange(width, device=device) for width in widths)])
    first = n_visual + is_text.sum(1, keepdim=True)  # position behind the prompt
    positions = torch.where(block == 0, inside, first + inside)
    is_prompt = torch.ones(batch, len(places), dtype=torch.bool, device=device)
    is_prompt[:, n_visual:length] = is_text
    is_prompt[:, length:] = False
    earlier = (block[:, None] == block) & (places[:, None] >= places)
    return Layout(positions, earlier | ((block > 0)[:, None] & is_prompt[:, None]))


def full_size(horizon: int = 1) -> TokenVLAPolicy:
    """Build OpenVLA 7B on the meta device: every module and shape, no weights."""
    config = TokenVLAConfig(
        input_features={"observation.images.primary": PolicyFeature(FeatureType.VISUAL, (3, 224, 224))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        horizon=horizon,
        n_action_steps=horizon,
        device="cpu",
    )
    with torch.device("meta"):
        return TokenVLAPolicy(config).eval()


def make_token_vla_pre_post_processors(
    config: TokenVLAConfig,
    dataset_stats: dict[str, dict[str, Any]] | None = None,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """Build lerobot's processor pipelines; see `vla.make_vla_processors`."""
    return make_vla_processors(config, dataset_stats, tokenizer)
