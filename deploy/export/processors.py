"""What a checkpoint's processors do, as numbers that a bundle can hold; what it cannot is refused by name.

lerobot's steps are read as lerobot runs them: one after the other, each under the names that the steps before
it leave. Nothing becomes "as it is" but what lerobot itself passes on as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.policies.xvla.processor_xvla import (
    XVLAAddDomainIdProcessorStep,
    XVLAImageNetNormalizeProcessorStep,
    XVLAImageToFloatProcessorStep,
)
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    IdentityProcessorStep,
    NewLineTaskProcessorStep,
    NormalizerProcessorStep,
    RelativeActionsProcessorStep,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.utils.constants import IMAGENET_STATS
from torch import Tensor

from vivace.deploy.bundle.normalization import Normalization, Relative
from vivace.deploy.export.packed import (
    BRINGS_BACK,
    PACKS,
    READS,
    normalization_of,
    packing,
    reads_packed,
    restoring,
)
from vivace.policies.arrays import is_image
from vivace.policies.checkpoint.statistics import MODES
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.language.tokenize import PromptStep
from vivace.policies.load import LoadedPolicy
from vivace.policies.spec import IMAGES, STATE, PolicySpec

READS_TEXT: tuple[type, ...] = (PromptStep, TokenizerProcessorStep)
ENDS_LINE: tuple[type, ...] = (NewLineTaskProcessorStep, Pi0NewLineProcessor)
TELLS_STATE = Pi05PrepareStateTokenizerProcessorStep
_BEFORE: tuple[type, ...] = (
    RenameObservationsProcessorStep,
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    IdentityProcessorStep,
    NormalizerProcessorStep,
    RelativeActionsProcessorStep,
    TELLS_STATE,
    *ENDS_LINE,
    XVLAAddDomainIdProcessorStep,
    XVLAImageNetNormalizeProcessorStep,
    XVLAImageToFloatProcessorStep,
    PACKS,
    READS,
    *READS_TEXT,
)
"""Steps before the policy that can be carried over."""
_BEHIND: tuple[type, ...] = (
    AbsoluteActionsProcessorStep,
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    IdentityProcessorStep,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
    *BRINGS_BACK,
)
"""Steps behind it."""
_FLOAT32 = (None, "float32", "float")


@dataclass(frozen=True)
class Processing:
    """What processors do to a robot's observations and a policy's actions."""

    renamed: Mapping[str, str] | None
    """The robot's name of an observation -> the policy's, where they differ; None: nowhere."""
    observations: Mapping[str, Normalization]
    """By the robot's names."""
    actions: Normalization
    """How actions are brought back to the robot's units."""
    relative: Relative | None
    """What actions are offsets to."""


def read_processors(loaded: LoadedPolicy) -> Processing:
    """Return what a checkpoint's processors do.

    Raises:
        UnsupportedPolicy: they do something that a bundle cannot, or do not say what they are to do.
    """
    before, behind = _steps(loaded.preprocess, _BEFORE), _steps(loaded.postprocess, _BEHIND)
    spec, renamed, observations = loaded.staged.spec, {}, {}
    for key, shape in spec.observation_shapes.items():
        *called, own = _called(before, key)
        if own != key:
            renamed[key] = own
        kind = _kind(loaded, key, own)
        wanted = (shape[0], 1, 1) if is_image(key) else tuple(shape)
        found = [_of_observation(step, name, kind, wanted) for step, name in zip(before, called, strict=True)]
        _check_pictures(before, found, key)
        observations[key] = _only(found, key, wanted)
    actions = [_of_actions(step, (spec.action_dim,), is_back=True) for step in behind]
    _check_both_ways(before, behind, spec.action_dim)
    _check_told(before)
    if reads_packed(loaded):
        packing(loaded, picture_sizes(spec, renamed))
    brought_back = _only(actions, "action", (spec.action_dim,))
    return Processing(renamed or None, observations, brought_back, _relative(loaded, before, behind))


def fixed(loaded: LoadedPolicy) -> dict[str, Tensor]:
    """What a checkpoint's processors tell the policy whatever is observed: key -> (1,)."""
    pipeline: Any = loaded.preprocess
    ids = [int(step.domain_id) for step in pipeline.steps if type(step) is XVLAAddDomainIdProcessorStep]
    return {"domain_id": loaded.placement.move(torch.tensor(ids[-1:]))} if ids else {}


def picture_sizes(spec: PolicySpec, renamed: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Height and width of every camera's pictures, by the policy's names."""
    shapes = spec.observation_shapes
    return {renamed.get(key, key): (shape[1], shape[2]) for key, shape in shapes.items() if is_image(key)}


def identity(shape: tuple[int, ...] = (1,)) -> Normalization:
    """Leave values as they are."""
    return Normalization(np.zeros(shape, np.float32), np.ones(shape, np.float32), 1.0, 0.0)


def array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as float32 on the host."""
    found: np.ndarray = tensor.detach().cpu().float().numpy()
    return found


def _steps(pipeline: Any, known: tuple[type, ...]) -> tuple[Any, ...]:
    """Steps of a pipeline; raises `UnsupportedPolicy` if one cannot be carried over."""
    for step in pipeline.steps:
        kind = type(step)
        if kind not in known:
            names = ", ".join(sorted(each.__name__ for each in known))
            _refuse(f"processor step {kind.__name__} is not one that can be exported: {names}")
        if kind is DeviceProcessorStep and step.float_dtype not in _FLOAT32:
            _refuse(
                f"processor step {kind.__name__} makes numbers {step.float_dtype}, a bundle computes in "
                "float32; set its float_dtype to null"
            )
    return tuple(pipeline.steps)


def _check_pictures(steps: Sequence[Any], found: Sequence[Normalization | None], key: str) -> None:
    """Raise `UnsupportedPolicy` if pictures are normalised before xvla looks how large they are."""
    places = [i for i, step in enumerate(steps) if type(step) is XVLAImageToFloatProcessorStep]
    if is_image(key) and any(one is not None for i in places for one in found[:i]):
        _refuse(
            f"{key!r} is normalised before XVLAImageToFloatProcessorStep, which divides by 255 what is above "
            "1; put that step first"
        )


def _called(steps: Sequence[Any], key: str) -> list[str]:
    """What every step calls an observation of the robot's, and behind the last one the policy does."""
    found = [key]
    for step in steps:
        renames = step.rename_map if isinstance(step, RenameObservationsProcessorStep) else {}
        found.append(renames.get(found[-1], found[-1]))
    return found


def _kind(loaded: LoadedPolicy, key: str, own: str) -> FeatureType:
    """What the policy's config says of an observation, by the robot's name and its own."""
    features = loaded.policy.config.input_features
    if own not in features:
        _refuse(f"the processors make {own!r} of {key!r}, but the policy reads {', '.join(features)}")
    kind: FeatureType = features[own].type
    pictures = {kind is FeatureType.VISUAL, is_image(key), is_image(own)}
    if len(pictures) > 1 or not key.startswith("observation."):
        _refuse(
            f"{key!r} is the policy's {own!r}, of type {kind.name}; a robot's pictures are called "
            "observation.image or observation.images.<camera>, and others begin with observation. too"
        )
    return kind


def _of_observation(step: Any, key: str, kind: FeatureType, shape: tuple[int, ...]) -> Normalization | None:
    """What a step does to an observation; None: it passes it on as it is, as xvla's pictures in [0, 1]."""
    if isinstance(step, XVLAImageNetNormalizeProcessorStep):
        reads = key.startswith(IMAGES) if step.image_keys is None else key in step.image_keys
        mean, std = (np.array(IMAGENET_STATS[n], np.float32).reshape(-1, 1, 1) for n in ("mean", "std"))
        return Normalization(mean, std, 1.0, 0.0) if reads else None
    if type(step) is PACKS and key == STATE:
        return normalization_of(step, shape)
    if not isinstance(step, NormalizerProcessorStep):
        return None
    if step.normalize_observation_keys is not None and key not in step.normalize_observation_keys:
        return None
    if key in step.features:
        return _numbers(step, key, step.features[key].type, shape)
    if step.norm_map.get(kind, NormalizationMode.IDENTITY) is not NormalizationMode.IDENTITY:
        _refuse(
            f"the checkpoint's normaliser knows {', '.join(step.features)}, but not {key!r}, which would "
            "pass as it is; save the processors again with all of the policy's features"
        )
    return None


def _of_actions(step: Any, shape: tuple[int, ...], *, is_back: bool = False) -> Normalization | None:
    """What a step does to actions; lerobot looks neither at its features nor at its keys there."""
    if type(step) in BRINGS_BACK:
        return restoring(step, shape[0])
    if not isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
        return None
    return _numbers(step, "action", FeatureType.ACTION, shape, is_back=is_back)


def _numbers(
    step: Any, key: str, kind: FeatureType, shape: tuple[int, ...], *, is_back: bool = False
) -> Normalization | None:
    """Numbers that a step normalises a feature by; None: by none.

    Args:
        step: lerobot's.
        key: of the statistics.
        kind: of the feature, which decides on the mode.
        shape: of the numbers.
        is_back: they are asked for the way back to the robot's units.
    """
    mode = step.norm_map.get(kind, NormalizationMode.IDENTITY)
    if mode is NormalizationMode.IDENTITY:
        return None
    first, second, gain, shift = MODES[mode]
    stats: Mapping[str, Tensor] = step._tensor_stats.get(key, {})
    missing = [name for name in (first, second) if name not in stats]
    if missing:
        held = ", ".join(step._tensor_stats) or "nothing"
        _refuse(
            f"{key!r} is normalised by {mode.name}, but the checkpoint's statistics lack its "
            f"{' and '.join(missing)} (they are of {held}), so it would pass as it is; save the processors "
            "with the dataset's statistics"
        )
    low, end, eps = array(stats[first]), array(stats[second]), np.float32(step.eps)
    if mode is not NormalizationMode.MEAN_STD:
        span = np.where(end - low == 0, eps, end - low)
    elif is_back:
        span = np.where(end == 0, eps, end)  # lerobot adds eps on the way in only
    else:
        span = end + eps
    try:
        low, span = (np.broadcast_to(values, shape).astype(np.float32) for values in (low, span))
    except ValueError:
        _refuse(
            f"statistics of {key!r} have the shape {tuple(end.shape)}, needed is {shape}; compute them anew "
            "from the dataset the policy was trained on"
        )
    if not (np.isfinite(low).all() and np.isfinite(span).all() and (span > 0).all()):
        _refuse(
            f"statistics of {key!r} have {second} not above {first}, or numbers that are not finite"
            if mode is not NormalizationMode.MEAN_STD
            else f"statistics of {key!r} have a std below 0, or numbers that are not finite"
        )
    return Normalization(low, span, gain, shift)


def _only(found: Sequence[Normalization | None], key: str, shape: tuple[int, ...]) -> Normalization:
    """The one normalisation among what steps do."""
    numbers = [one for one in found if one is not None]
    if len(numbers) > 1:
        _refuse(f"{key!r} is normalised {len(numbers)} times; a bundle holds one normalisation of each")
    return numbers[0] if numbers else identity(shape)


def _check_told(before: Sequence[Any]) -> None:
    """A prompt tells a state that is normalised already."""
    kinds = [type(step) for step in before]
    if TELLS_STATE in kinds and NormalizerProcessorStep in kinds[kinds.index(TELLS_STATE) :]:
        _refuse(f"{TELLS_STATE.__name__} must come behind the normaliser, whose state the prompt tells")


def _check_both_ways(before: Sequence[Any], behind: Sequence[Any], action_dim: int) -> None:
    """Actions that are known before must be normalised by what they are brought back by."""
    normalisers = [step for step in before if isinstance(step, NormalizerProcessorStep)]
    there = [_of_actions(step, (action_dim,)) for step in normalisers if "action" in step._tensor_stats]
    back = [_of_actions(step, (action_dim,)) for step in behind]
    ways = [_only(way, "action", (action_dim,)) for way in (there, back)]
    if there and any(not np.array_equal(getattr(ways[0], n), getattr(ways[1], n)) for n in ("low", "span")):
        _refuse(
            "actions are normalised by other statistics than they are brought back by; save both processors "
            "with the same"
        )


def _relative(loaded: LoadedPolicy, before: Sequence[Any], behind: Sequence[Any]) -> Relative | None:
    """What actions are offsets to, by lerobot's pair of steps."""
    pair = [
        [step for step in steps if isinstance(step, kind) and step.enabled]
        for steps, kind in ((before, RelativeActionsProcessorStep), (behind, AbsoluteActionsProcessorStep))
    ]
    if not any(pair):
        return None
    if [len(steps) for steps in pair] != [1, 1]:
        _refuse("relative actions need one enabled step before the policy and one behind it; enable the pair")
    (made,), (restored,) = pair
    spec, place = loaded.staged.spec, before.index(made)
    state = next((key for key in spec.observation_shapes if _called(before, key)[place] == STATE), "")
    is_late = any(isinstance(step, NormalizerProcessorStep) for step in before[:place])
    is_early = any(isinstance(step, UnnormalizerProcessorStep) for step in behind[behind.index(restored) :])
    if is_late or is_early or not state:
        _refuse(
            "relative actions are offsets to observation.state in the robot's units: "
            "RelativeActionsProcessorStep must come before the normaliser, AbsoluteActionsProcessorStep "
            "behind the unnormaliser"
        )
    shape = spec.observation_shapes[state]
    if len(shape) != 1 or shape[0] < spec.action_dim:
        _refuse(
            f"relative actions have {spec.action_dim} numbers, {state} has {shape[0]}; it must have as many"
        )
    return Relative(state, tuple(map(bool, made._build_mask(spec.action_dim))))


def _refuse(text: str) -> NoReturn:
    raise UnsupportedPolicy(text)
