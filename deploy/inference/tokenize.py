"""What an instruction means to an exported policy: the tokens that were made at export, or are made here."""

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import INSTRUCTION, MASK, TOKENS, PromptSettings
from vivace.policies.errors import BadSetting
from vivace.policies.plain_data import shown

_TOLD = 5
"""Instructions that a message tells."""


class InstructionTokenizer:
    """Tokenises the instruction of a bundle's policy, once for each new one.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._task: str | None = None
        self._tokens: dict[str, np.ndarray] = {}

    def __call__(self, task: str) -> dict[str, np.ndarray]:
        """Return token ids (1, L), padded, and their mask; nothing of a policy that reads none.

        Raises:
            BadSetting: the instruction is empty, too long, or unknown where no tokenizer is.
        """
        settings = self._bundle.prompt
        if settings is not None and task != self._task:
            self._tokens = self._padded(task, settings)
            self._task = task
        return self._tokens

    def _padded(self, task: str, settings: PromptSettings) -> dict[str, np.ndarray]:
        is_lowered = settings.tokenizer and not settings.verbatim  # ours does not tell cases apart
        known = task.strip().lower() if is_lowered else task
        ids = self._bundle.prompts.get(known) or self._encode(task, settings)
        length = settings.length
        if len(ids) > length:
            raise BadSetting(
                f"instruction {shown(task)} makes {len(ids)} tokens with its prompt, this policy reads at "
                f"most {length}; shorten it"
            )
        tokens = np.full((1, length), settings.pad, np.int64)
        tokens[0, : len(ids)] = ids
        return {TOKENS: tokens, MASK: np.arange(length)[None] < len(ids)}

    def _encode(self, task: str, settings: PromptSettings) -> tuple[int, ...]:
        known = ", ".join(shown(text) for text in tuple(self._bundle.prompts)[:_TOLD])
        known += " …" * (len(self._bundle.prompts) > _TOLD)
        if not task.strip():
            raise BadSetting(f"this policy reads an instruction, but none was given; it knows {known}")
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BadSetting(
                f"instruction {shown(task)} was not tokenised at export, and the package tokenizers is not "
                f"installed; install it, or give one of {known}"
            ) from error
        if not settings.tokenizer:
            raise BadSetting(
                f"this bundle holds the instructions {known} only; export it with {shown(task)} too"
            )
        tokenizer = Tokenizer.from_file(str(self._bundle.path(settings.tokenizer)))
        if settings.verbatim:
            return tuple(tokenizer.encode(written(settings.template, task)).ids)
        text = settings.template.replace(INSTRUCTION, task.strip().lower())
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return (settings.bos, *ids, *settings.suffix)


def written(template: str, instruction: str) -> str:
    """Write an instruction into a template as it is; a line that it ends itself is not ended twice."""
    if template.endswith("\n"):
        instruction = instruction.removesuffix("\n")
    return template.replace(INSTRUCTION, instruction)
