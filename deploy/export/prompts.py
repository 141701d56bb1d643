"""What a checkpoint's processors make of instructions, as token ids that a bundle can hold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vivace.deploy.bundle.form import MASK, TOKENS, PromptSettings
from vivace.deploy.export.processors import READS_TEXT
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.language.tokenize import PromptStep
from vivace.policies.load import LoadedPolicy
from vivace.policies.session import Session

TOKENIZER = "tokenizer.json"
_ANY = "a"
"""An instruction, to see how any is padded."""


def prompts(
    loaded: LoadedPolicy, instructions: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], PromptSettings | None]:
    """Return instruction -> token ids, and how they are padded; nothing of a policy that reads none.

    An instruction is called by its text; in lower case if the policy's own prompt puts it so.

    Raises:
        BadSetting: it reads one, and none is given.
        UnsupportedPolicy: it pads on the left, or to the longest of a batch.
    """
    step = _step(loaded)
    if step is None:
        return {}, None
    if not instructions:
        raise BadSetting("this policy reads an instruction; give the texts it will be told when exporting")
    found = {text: _tokens(loaded, text) for text in (*instructions, _ANY)}
    length = len(found[_ANY][0])
    pads = [int(ids[~mask][0]) for ids, mask in found.values() if not mask.all()]
    settings = PromptSettings(length=length, pad=pads[0] if pads else 0)
    for text, (ids, mask) in found.items():
        n = int(mask.sum())
        is_padded = len(ids) == length and mask[:n].all() and (ids[n:] == settings.pad).all()
        if not is_padded or not n:
            raise UnsupportedPolicy(
                f"the tokenizer of this policy makes {len(ids)} ids of {text!r} and {length} of {_ANY!r}, or "
                "does not pad behind the text; a bundle needs padding='max_length' and padding_side='right'"
            )
    is_ours = type(step) is PromptStep
    named = {text.strip().lower() if is_ours else text: found[text] for text in instructions}
    return {text: tuple(ids[mask].tolist()) for text, (ids, mask) in named.items()}, settings


def with_tokenizer(
    loaded: LoadedPolicy, settings: PromptSettings | None, folder: Path
) -> PromptSettings | None:
    """Write the tokenizer that travels inside a checkpoint, for instructions that come later."""
    step = _step(loaded)
    if settings is None or type(step) is not PromptStep:
        return settings
    (folder / TOKENIZER).write_text(step.tokenizer.to_str(), encoding="utf-8")
    return replace(
        settings, tokenizer=TOKENIZER, template=step.template, bos=step.bos, suffix=tuple(step.suffix)
    )


def _step(loaded: LoadedPolicy) -> Any:
    """The step that reads text; None if there is none."""
    pipeline: Any = loaded.preprocess
    return next((step for step in pipeline.steps if type(step) in READS_TEXT), None)


def _tokens(loaded: LoadedPolicy, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (L,) of an instruction and their mask, as the checkpoint's own pipeline makes them."""
    ready = Session(loaded, task=text).blank()
    return ready[TOKENS][0].cpu().numpy(), ready[MASK][0].bool().cpu().numpy()
