"""What a checkpoint's processors make of instructions, as token ids that a bundle can hold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.processor import TokenizerProcessorStep
from tokenizers import Tokenizer
from torch import Tensor

from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.form import INSTRUCTION, MASK, STATE_TOLD, TOKENS, PromptSettings
from vivace.deploy.export.packed import Packing
from vivace.deploy.export.processors import ENDS_LINE, READS_TEXT, TELLS_STATE
from vivace.deploy.inference.tokenize import formal, state_told, written
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.language.tokenize import PromptStep
from vivace.policies.load import LoadedPolicy
from vivace.policies.session import Session
from vivace.policies.spec import STATE

TOKENIZER = "tokenizer.json"
_ROOM = 32
"""Tokens that an instruction may have more than those at export, where there is no longest one."""
_FAR = np.float32(1e6)
"""A state that is told by three digits a number."""
_ANY = "a"
"""An instruction, to see how any is padded."""


def prompts(
    loaded: LoadedPolicy, instructions: Sequence[str], at_most: int = 0
) -> tuple[dict[str, tuple[int, ...]], PromptSettings | None]:
    """Return instruction -> token ids, and how they are padded; nothing of a policy that reads none.

    An instruction is called by its text; in lower case if the policy's own prompt puts it so.

    A bundle pads every instruction to the longest that the policy reads, where the checkpoint pads to the
    longest of a batch; that the policy does not notice, `parity.prove_processors` proves.

    Args:
        loaded: the checkpoint.
        instructions: texts.
        at_most: tokens of the longest prompt, if fewer than the policy reads; 0: as many.

    Raises:
        BadSetting: it reads one, and none is given; or one is longer than asked for.
        UnsupportedPolicy: it pads on the left.
    """
    step = _step(loaded)
    if step is None:
        return {}, None
    if not instructions:
        raise BadSetting("this policy reads an instruction; give the texts it will be told when exporting")
    found = {text: _tokens(loaded, text)[:2] for text in (*instructions, _ANY)}
    length = _longest(step) or len(found[_ANY][0])
    pads = [int(ids[~mask][0]) for ids, mask in found.values() if not mask.all()]
    settings = PromptSettings(length=length, pad=pads[0] if pads else _pad(step))
    for text, (ids, mask) in found.items():
        n = int(mask.sum())
        is_whole = len(ids) == length or (_longest(step) and len(ids) <= length)
        if not (is_whole and n and mask[:n].all() and (ids[n:] == settings.pad).all()):
            raise UnsupportedPolicy(
                f"the tokenizer of this policy makes {len(ids)} ids of {text!r} and {len(found[_ANY][0])} of "
                f"{_ANY!r}, or does not pad behind the text; a bundle needs padding_side='right' and "
                "padding='max_length' or 'longest'"
            )
    if at_most:
        settings = _cut(loaded, settings, at_most, instructions)
    is_ours = type(step) is PromptStep
    named = {text.strip().lower() if is_ours else text: found[text] for text in instructions}
    return {text: tuple(ids[mask].tolist()) for text, (ids, mask) in named.items()}, settings


def _cut(
    loaded: LoadedPolicy, settings: PromptSettings, at_most: int, instructions: Sequence[str]
) -> PromptSettings:
    """Settings of shorter prompts; of those that tell a state, with room for the longest state."""
    found = {text: int(_tokens(loaded, text, is_far=True)[1].sum()) for text in instructions}
    text = max(found, key=found.__getitem__)
    if not found[text] <= at_most <= settings.length:
        raise BadSetting(
            f"export.prompt_tokens={at_most}; of {text!r} the tokenizer makes up to {found[text]} tokens "
            f"with its prompt, and the policy reads {settings.length}; give a number between"
        )
    return replace(settings, length=at_most)


def packed_prompts(
    loaded: LoadedPolicy, packs: Packing, instructions: Sequence[str], folder: Path, at_most: int = 0
) -> tuple[dict[str, tuple[int, ...]], PromptSettings]:
    """Return the same of a policy whose processors are groot's, and write the tokenizer.

    Its prompts have no longest one, so there is room for some tokens more than in those that are given. It
    pads in front where lerobot's batches are uneven; behind, where a bundle does, is as good to it.

    Raises:
        BadSetting: no instruction is given, or one is longer than asked for.
        UnsupportedPolicy: the tokenizer is none that the package tokenizers reads.
    """
    if not instructions:
        raise BadSetting("this policy reads an instruction; give the texts it will be told when exporting")
    theirs = packs.tokenizer
    tokenizer = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = {}
    for text in instructions:
        found[text] = tuple(
            tokenizer.encode(written(packs.template, formal(text) if packs.is_formal else text)).ids
        )
        wanted = Session(loaded, task=text).blank()["input_ids"][0].tolist()
        if list(found[text]) != wanted:
            raise UnsupportedPolicy(
                f"of {text!r} the tokenizer of this policy makes {len(wanted)} ids, the package tokenizers "
                f"{len(found[text])}, or others; a bundle needs one that it reads"
            )
    (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    longest = max(map(len, found.values()))
    if at_most and at_most < longest:
        raise BadSetting(
            f"export.prompt_tokens={at_most}; the instructions make up to {longest} tokens with pictures and "
            "prompt; give as many or more"
        )
    return found, PromptSettings(
        length=at_most or longest + _ROOM,
        pad=int(theirs.pad_token_id or 0),
        tokenizer=TOKENIZER,
        template=packs.template,
        verbatim=True,
        formal=packs.is_formal,
    )


def padded(data: CalibrationData, settings: PromptSettings | None) -> CalibrationData:
    """Return observations whose prompts are as long as a bundle's, padded behind."""
    if settings is None or TOKENS not in data.batch:
        return data

    def longer(value: Any, pad: Any) -> Tensor:
        rows = value if isinstance(value, list) else [value]  # what is longer than a bundle's is cut
        return torch.cat([F.pad(row, (0, settings.length - row.shape[1]), value=pad) for row in rows])

    masks = data.batch[MASK]
    longest = max(int(mask.sum(-1).max()) for mask in (masks if isinstance(masks, list) else [masks]))
    if longest > settings.length:
        raise BadSetting(
            f"an observation to prove parity on has a prompt of {longest} tokens, the bundle's have at most "
            f"{settings.length}; export with a larger --export.prompt_tokens"
        )
    tokens, mask = longer(data.batch[TOKENS], settings.pad), longer(data.batch[MASK], 0)
    return replace(data, batch={**data.batch, TOKENS: tokens, MASK: mask})


def with_tokenizer(
    loaded: LoadedPolicy, settings: PromptSettings | None, texts: Sequence[str], folder: Path
) -> PromptSettings | None:
    """Write the checkpoint's tokenizer, for instructions that come later.

    Args:
        loaded: the checkpoint.
        settings: how its prompts are padded; None: it reads none.
        texts: instructions; a tokenizer that is not lerobot's of these alone is not written.
        folder: of the bundle.

    Raises:
        UnsupportedPolicy: it is not, and the prompt tells the state, so that a bundle needs it.
    """
    step = _step(loaded)
    if settings is None:
        return None
    if type(step) is PromptStep:
        (folder / TOKENIZER).write_text(step.tokenizer.to_str(), encoding="utf-8")
        return replace(
            settings, tokenizer=TOKENIZER, template=step.template, bos=step.bos, suffix=tuple(step.suffix)
        )
    template = _template(loaded)
    tells_state = STATE_TOLD in template
    tokenizer = _tokenizer(loaded, step, template, texts, settings.length)
    if tokenizer is None:
        if tells_state:
            raise UnsupportedPolicy(
                "the prompt of this policy tells the state, so a bundle tokenises it at every observation; "
                "the checkpoint's tokenizer is none that the package tokenizers reads"
            )
        return settings
    (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    state = STATE if tells_state else ""
    return replace(settings, tokenizer=TOKENIZER, template=template, verbatim=True, state=state)


def _tokenizer(
    loaded: LoadedPolicy, step: Any, template: str, texts: Sequence[str], length: int
) -> Tokenizer | None:
    """The tokenizer of lerobot's step; None if it is not made of data, or writes these texts otherwise."""
    backend = getattr(step.input_tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in (*texts, _ANY):
        ids, mask, state = _tokens(loaded, text)
        found = tokenizer.encode(written(template, text, state)).ids
        if len(found) <= length and found != ids[mask].tolist():  # longer ones are cut, or refused
            return None
    return tokenizer


def _template(loaded: LoadedPolicy) -> str:
    """How lerobot's steps before the tokenizer write an instruction."""
    pipeline: Any = loaded.preprocess
    kinds = [type(step) for step in pipeline.steps]
    if TELLS_STATE in kinds:
        return f"Task: {INSTRUCTION}, State: {STATE_TOLD};\nAction: "
    return f"{INSTRUCTION}\n" if set(kinds) & set(ENDS_LINE) else INSTRUCTION


def _longest(step: Any) -> int:
    """Tokens of the longest instruction, of a step that pads to the longest of a batch; else 0."""
    is_longest = isinstance(step, TokenizerProcessorStep) and step.padding in ("longest", True)
    return step.max_length if is_longest else 0


def _pad(step: Any) -> int:
    """Id that nothing was padded with so far."""
    return int(step.input_tokenizer.pad_token_id or 0) if isinstance(step, TokenizerProcessorStep) else 0


def _step(loaded: LoadedPolicy) -> Any:
    """The step that reads text; None if there is none."""
    pipeline: Any = loaded.preprocess
    return next((step for step in pipeline.steps if type(step) in READS_TEXT), None)


def _tokens(loaded: LoadedPolicy, text: str, is_far: bool = False) -> tuple[np.ndarray, np.ndarray, str]:
    """Ids (L,) of an instruction beside a blank observation, their mask, and how that state is told.

    With `is_far` it is so far from zero that it is told by as many tokens as there may be.
    """
    session = Session(loaded, task=text)
    seen = session.blank_observation()
    far = {key: value + _FAR for key, value in seen.items() if is_far and not is_image(key)}
    ready = session.prepare(seen | far)
    state = state_told(ready[STATE][0, -1].cpu().numpy()) if STATE in ready else ""
    return ready[TOKENS][0].cpu().numpy(), ready[MASK][0].bool().cpu().numpy(), state
