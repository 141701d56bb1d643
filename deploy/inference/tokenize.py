"""What an instruction means to an exported policy: the tokens that were made at export, or are made here.

A prompt may tell the state too, as openpi's pi0.5 has it; then it is another at every observation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import INSTRUCTION, MASK, STATE_TOLD, TOKENS, PromptSettings
from vivace.policies.errors import BadSetting
from vivace.policies.plain_data import shown

_TOLD = 5
"""Instructions that a message tells."""
_EDGES = np.linspace(-1, 1, 256 + 1)[:-1]
"""Of the parts of [-1, 1] that a state is told by."""


class InstructionTokenizer:
    """Tokenises the prompt of a bundle's policy, once for each new one.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._known: tuple[str, str] | None = None
        self._tokens: dict[str, np.ndarray] = {}
        self._tokenizer: Any = None

    def __call__(self, task: str, seen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return token ids (1, L), padded, and their mask; nothing of a policy that reads none.

        Args:
            task: the instruction.
            seen: normalised observations (1, To, ...) by the policy's names.

        Raises:
            BadSetting: the instruction is empty, too long, or unknown where no tokenizer is.
        """
        settings = self._bundle.prompt
        if settings is None:
            return self._tokens
        state = state_told(seen[settings.state][0, -1]) if settings.state else ""
        if (task, state) != self._known:
            self._tokens = self._padded(task, state, settings)
            self._known = task, state
        return self._tokens

    def _padded(self, task: str, state: str, settings: PromptSettings) -> dict[str, np.ndarray]:
        is_lowered = settings.tokenizer and not settings.verbatim  # ours does not tell cases apart
        known = None if settings.state else task.strip().lower() if is_lowered else task
        ids = self._bundle.prompts.get(known) if known else None
        ids = ids or self._encode(task, state, settings)
        length = settings.length
        if len(ids) > length:
            raise BadSetting(
                f"instruction {shown(task)} makes {len(ids)} tokens with its prompt, this policy reads at "
                f"most {length}; shorten it"
            )
        tokens = np.full((1, length), settings.pad, np.int64)
        tokens[0, : len(ids)] = ids
        return {TOKENS: tokens, MASK: np.arange(length)[None] < len(ids)}

    def _encode(self, task: str, state: str, settings: PromptSettings) -> tuple[int, ...]:
        known = ", ".join(shown(text) for text in tuple(self._bundle.prompts)[:_TOLD])
        known += " …" * (len(self._bundle.prompts) > _TOLD)
        if not task.strip():
            raise BadSetting(f"this policy reads an instruction, but none was given; it knows {known}")
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            other = "" if settings.state else f", or give one of {known}"
            raise BadSetting(
                f"instruction {shown(task)} was not tokenised at export, and the package tokenizers is not "
                f"installed; install it{other}"
            ) from error
        if not settings.tokenizer:
            raise BadSetting(
                f"this bundle holds the instructions {known} only; export it with {shown(task)} too"
            )
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(str(self._bundle.path(settings.tokenizer)))
        tokenizer = self._tokenizer
        if settings.verbatim:
            text = formal(task) if settings.formal else task
            return tuple(tokenizer.encode(written(settings.template, text, state)).ids)
        text = settings.template.replace(INSTRUCTION, task.strip().lower())
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return (settings.bos, *ids, *settings.suffix)


def written(template: str, instruction: str, state: str = "") -> str:
    """Write an instruction into a template as it is, a line that it ends itself not ended twice.

    Beside a state it is one line without underscores, as openpi's pi0.5 has it.
    """
    if STATE_TOLD in template:
        instruction = instruction.strip().replace("_", " ").replace("\n", " ")
    if template.endswith("\n"):
        instruction = instruction.removesuffix("\n")
    return template.replace(STATE_TOLD, state).replace(INSTRUCTION, instruction)


def formal(instruction: str) -> str:
    """Write an instruction as groot reads it: letters, digits, spaces and underscores, in lower case."""
    return "".join(c for c in instruction.lower() if c.isalnum() or c.isspace() or c == "_")


def state_told(state: np.ndarray) -> str:
    """Say of each number of a normalised state (n,) which of 256 parts of [-1, 1] it is in; below them -1."""
    return " ".join(map(str, np.digitize(state, _EDGES) - 1))
