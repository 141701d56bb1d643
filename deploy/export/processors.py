"""What a checkpoint's processors do, as numbers and texts that a bundle can hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from torch import Tensor

from vivace.deploy.bundle.form import MASK, TOKENS, PromptSettings
from vivace.deploy.bundle.normalization import Normalization
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.language.tokenize import PromptStep
from vivace.policies.load import LoadedPolicy

TOKENIZER = "tokenizer.json"

_MODES: dict[str, tuple[str, str, float, float]] = {
    "MIN_MAX": ("min", "max", 2.0, -1.0),
    "QUANTILES": ("q01", "q99", 2.0, -1.0),
    "QUANTILE10": ("q10", "q90", 2.0, -1.0),
}
"""lerobot's normalisation mode -> statistics at the ends, gain, shift."""

_READS_TEXT: tuple[type, ...] = (PromptStep, TokenizerProcessorStep)
_KNOWN_STEPS: tuple[type, ...] = (
    RenameObservationsProcessorStep,
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    UnnormalizerProcessorStep,
    *_READS_TEXT,
)


def identity(shape: tuple[int, ...] = (1,)) -> Normalization:
    """Leave values as they are."""
    return Normalization(np.zeros(shape, np.float32), np.ones(shape, np.float32), 1.0, 0.0)


def observations(loaded: LoadedPolicy) -> Iterator[tuple[str, Normalization]]:
    """Yield how each observation is normalised, by key.

    Raises:
        UnsupportedPolicy: the checkpoint has a processor that cannot be exported.
    """
    pipelines: tuple[Any, ...] = (loaded.preprocess, loaded.postprocess)
    for pipeline in pipelines:
        for step in pipeline.steps:
            renames = getattr(step, "rename_map", {})
            if type(step) not in _KNOWN_STEPS or renames:
                raise UnsupportedPolicy(
                    f"processor step {type(step).__name__} {renames or ''} is not one that can be exported: "
                    f"{', '.join(sorted(known.__name__ for known in _KNOWN_STEPS))}, without renaming"
                )
    for key, shape in loaded.staged.spec.observation_shapes.items():
        yield key, _normalization(loaded.preprocess, key, (shape[0], 1, 1) if is_image(key) else shape)


def actions(loaded: LoadedPolicy) -> Normalization:
    """Return how actions are brought back to the robot's units."""
    return _normalization(loaded.postprocess, "action", (loaded.staged.spec.action_dim,))


def _normalization(pipeline: Any, key: str, shape: tuple[int, ...]) -> Normalization:
    """Read how a pipeline (un)normalises a feature, number by number."""
    found = _known_normalization(pipeline, key) or identity(shape)
    low, span = (np.broadcast_to(values, shape) for values in (found.low, found.span))
    return replace(found, low=low, span=span)


def _known_normalization(pipeline: Any, key: str) -> Normalization | None:
    for step in pipeline.steps:
        if key not in getattr(step, "features", {}):
            continue
        kind: FeatureType = step.features[key].type
        mode = getattr(step.norm_map.get(kind), "name", "IDENTITY")
        stats: Mapping[str, Tensor] = step._tensor_stats.get(key, {})
        if mode == "IDENTITY" or not stats:
            return None
        if mode == "MEAN_STD":
            return Normalization(array(stats["mean"]), array(stats["std"]) + np.float32(step.eps), 1.0, 0.0)
        low, high, gain, shift = _MODES[mode]
        span = array(stats[high]) - array(stats[low])
        return Normalization(array(stats[low]), np.where(span == 0, np.float32(step.eps), span), gain, shift)
    return None


def array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as float32 on the host."""
    return tensor.detach().cpu().float().numpy()


def _reads_text(loaded: LoadedPolicy) -> bool:
    pipeline: Any = loaded.preprocess
    return any(type(step) in _READS_TEXT for step in pipeline.steps)


def _tokens(loaded: LoadedPolicy, text: str) -> tuple[Tensor, Tensor]:
    """Padded ids (L,) of an instruction and their mask, as the checkpoint's own pipeline makes them."""
    spec = loaded.staged.spec
    device = loaded.placement.device
    shapes = spec.observation_shapes.items()
    blank = {key: torch.zeros(1, spec.n_obs_steps, *shape, device=device) for key, shape in shapes}
    ready = loaded.preprocess(blank | {"task": [text]})
    return ready[TOKENS][0].cpu(), ready[MASK][0].bool().cpu()


def prompts(loaded: LoadedPolicy, instructions: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return text -> token ids of instructions; nothing of a policy that reads none.

    Raises:
        BadSetting: it reads one, and none is given.
    """
    if not _reads_text(loaded):
        return {}
    if not instructions:
        raise BadSetting("this policy reads an instruction; give the texts it will be told when exporting")
    found = {}
    for text in instructions:
        ids, mask = _tokens(loaded, text)
        found[text.strip().lower()] = tuple(ids[mask].tolist())
    return found


def prompt_settings(loaded: LoadedPolicy, folder: Path) -> PromptSettings | None:
    """How instructions that come later are tokenised; writes the tokenizer's file."""
    if not _reads_text(loaded):
        return None
    ids, mask = _tokens(loaded, "a")
    settings = PromptSettings(length=len(ids), pad=int(ids[~mask][0]) if not mask.all() else 0)
    pipeline: Any = loaded.preprocess
    for step in pipeline.steps:
        if type(step) is PromptStep:
            (folder / TOKENIZER).write_text(step.tokenizer.to_str(), encoding="utf-8")
            settings = replace(
                settings,
                tokenizer=TOKENIZER,
                template=step.template,
                bos=step.bos,
                suffix=tuple(step.suffix),
            )
    return settings
