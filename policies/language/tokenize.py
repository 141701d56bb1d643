"""From an instruction to token ids: the prompt a policy was trained with, as a lerobot processor step.

The tokenizer travels inside the checkpoint's processor file, so nothing is looked up by name.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from vivace.policies.errors import BadSetting

OPENVLA_PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
"""What OpenVLA and CogACT were trained with; instructions are in lower case."""


@ProcessorStepRegistry.register("vivace_prompt")
@dataclass
class PromptStep(ObservationProcessorStep):
    """Write the instruction into the prompt and tokenise it.

    Adds "observation.language.tokens" (B, max_tokens) and "observation.language.attention_mask" likewise,
    True on tokens that are not padding. Tokens begin with BOS; padding is on the right.
    """

    template: str = OPENVLA_PROMPT
    suffix: tuple[int, ...] = ()
    """Ids that follow the prompt, e.g. CogACT's (29871, 2)."""
    bos: int = 1
    pad: int = 0
    max_tokens: int = 32
    tokenizer: Any = field(default=None, repr=False)
    """A `tokenizers.Tokenizer`; read from the checkpoint when it is loaded."""

    def encode(self, instruction: str) -> list[int]:
        """Return BOS, the prompt and the suffix, unpadded.

        Raises:
            BadSetting: there is no instruction, or it has too many tokens.
        """
        if not instruction.strip():
            raise BadSetting("this policy reads an instruction, but none was given; set the task's text")
        text = self.template.format(instruction=instruction.strip().lower())
        ids = [self.bos, *self.tokenizer.encode(text, add_special_tokens=False).ids, *self.suffix]
        if len(ids) > self.max_tokens:
            raise BadSetting(
                f"instruction {instruction!r} makes {len(ids)} tokens with its prompt, this policy reads at "
                f"most {self.max_tokens}; shorten it"
            )
        return ids

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Add tokens and their mask."""
        tasks = (self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get("task")
        if tasks is None:
            raise BadSetting("this policy reads an instruction, but the observation has no 'task'")
        rows = [self.encode(task) for task in ([tasks] if isinstance(tasks, str) else tasks)]
        tokens = torch.full((len(rows), self.max_tokens), self.pad)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        lengths = torch.tensor([len(ids) for ids in rows])
        mask = torch.arange(self.max_tokens) < lengths[:, None]
        device = next((v.device for v in observation.values() if isinstance(v, Tensor)), None)
        return {
            **observation,
            OBS_LANGUAGE_TOKENS: tokens.to(device, non_blocking=True),
            OBS_LANGUAGE_ATTENTION_MASK: mask.to(device, non_blocking=True),
        }

    def get_config(self) -> dict[str, Any]:
        """Everything but the tokenizer."""
        return {
            "template": self.template,
            "suffix": list(self.suffix),
            "bos": self.bos,
            "pad": self.pad,
            "max_tokens": self.max_tokens,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The tokenizer's JSON as bytes."""
        return {"tokenizer": torch.tensor(list(self.tokenizer.to_str().encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the tokenizer."""
        self.tokenizer = Tokenizer.from_str(bytes(state["tokenizer"].tolist()).decode())

    def transform_features(self, features: Any) -> Any:
        """Features of the policy stay as they are; tokens are no observation of the robot."""
        return features


def train_tokenizer(
    instructions: list[str], vocabulary: int = 384, template: str = OPENVLA_PROMPT
) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the prompts of a few instructions; ids 0, 1, 2: padding, BOS, EOS.

    Any text can be encoded, since all bytes are in the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [template.format(instruction=text.strip().lower()) for text in instructions], trainer
    )
    return tokenizer
