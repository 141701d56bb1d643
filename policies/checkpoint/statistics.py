"""Proof that a checkpoint normalises what its config says it does.

lerobot passes a value on unchanged where a step holds no statistics under exactly the feature's name, so a
policy whose statistics are missing or misnamed acts in [-1, 1] and nobody is told. Here every feature is
followed through the pipelines, renamings included.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import (
    NormalizerProcessorStep,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
    create_transition,
)
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vivace.policies.checkpoint.manifest import PIPELINES, processor_steps
from vivace.policies.errors import NoStatistics, PolicyNotFound
from vivace.policies.features import padded_state, renames


class Scale(NamedTuple):
    """y = gain (x - first) / (second - first) + shift; std is the second's distance from the mean itself."""

    first: str
    """Statistic that becomes `shift`."""
    second: str
    gain: float
    shift: float


MODES = {
    NormalizationMode.MEAN_STD: Scale("mean", "std", 1.0, 0.0),
    NormalizationMode.MIN_MAX: Scale("min", "max", 2.0, -1.0),
    NormalizationMode.QUANTILES: Scale("q01", "q99", 2.0, -1.0),
    NormalizationMode.QUANTILE10: Scale("q10", "q90", 2.0, -1.0),
}
"""lerobot's modes, as its `NormalizerProcessorStep` computes them."""
_BRIGHTEST = 1.5
"""Statistics of pictures in [0, 1] stay below, those of [0, 255] do not; in units of white."""
_DIMMEST = 100.0
"""White is less than this many times the brightest statistic: of dark pictures in [0, 1] it is 20."""
_REMEDY = (
    "save the processors again with the dataset's: lerobot's make_pre_post_processors(config, "
    "dataset_stats=dataset.meta.stats)"
)


def check_statistics(folder: Path, config: Any, preprocess: Any, postprocess: Any) -> None:
    """Raise `PolicyNotFound` unless every feature is normalised as its policy's config says.

    Args:
        folder: of the checkpoint, for messages.
        config: of the policy, with features and `normalization_mapping`.
        preprocess: lerobot's pipeline of observations.
        postprocess: of actions.
    """
    _check_finite(folder, preprocess, postprocess)
    action = {ACTION: config.action_feature}
    _check(folder, config, preprocess, NormalizerProcessorStep, {**config.input_features, **action})
    _check(folder, config, postprocess, UnnormalizerProcessorStep, action)
    for pipeline, features in ((preprocess, {**config.input_features, **action}), (postprocess, action)):
        _check_own_way(f"{folder}/{pipeline.name}.json", pipeline, features)


def lacks_statistics(folder: Path, config: Any, *, is_lent: bool) -> bool:
    """Whether processors hold no statistics at all of what config.json says is normalised.

    So it is with a base that is published to be trained. One whose statistics can be meant for a feature
    under another name is none: `check_statistics` says how to name them.

    Args:
        folder: of the checkpoint.
        config: of the policy.
        is_lent: others are there for it.

    Raises:
        NoStatistics: there are none, and none are lent.
    """
    said = getattr(config, "normalization_mapping", None) or {}
    wanted = [
        key
        for key, feature in {**config.input_features, **config.output_features}.items()
        if said.get(feature.type, NormalizationMode.IDENTITY) != NormalizationMode.IDENTITY
    ]
    files = [folder / name for name in PIPELINES if (folder / name).is_file()]
    steps = [step for file in files for step in processor_steps(file)]
    states = [folder / step["state_file"] for step in steps if "state_file" in step]
    held = {name.rpartition(".")[0] for state in states for name in _in(state)}
    if not wanted or any(len(_meant(held, key)) == 1 for key in wanted):
        return False
    if files and not is_lent:
        raise NoStatistics(
            f"{folder} holds no statistics of {', '.join(wanted)}, which config.json says are normalised: a "
            "base to be trained, it seems. vivace explain and vivace bench count and time it; for its "
            f"actions give the robot's dataset, --data.repo=…, or {_REMEDY}"
        )
    return True


def _in(file: Path) -> list[str]:
    """Names of the tensors of a state file; none of a damaged one, which lerobot refuses."""
    try:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError):
        return []


def _meant(held: Iterable[str], key: str) -> list[str]:
    """Names under which statistics of a feature may be held."""
    return [name for name in held if f".{_loosely(name)}".endswith(_loosely(f".{key}"))]


def _check_finite(folder: Path, *pipelines: Any) -> None:
    for pipeline in pipelines:
        for step in pipeline.steps:
            for name, tensor in step.state_dict().items():
                if not torch.isfinite(tensor.float()).all():
                    raise PolicyNotFound(
                        f"{folder}: normaliser statistic {name!r} holds NaN or infinity; "
                        "recompute the dataset statistics and save the checkpoint again"
                    )


def _check(
    folder: Path, config: Any, pipeline: Any, kind: type, features: Mapping[str, PolicyFeature]
) -> None:
    """Check the features that pass through one pipeline against its steps of one kind."""
    said = getattr(config, "normalization_mapping", None) or {}
    where = f"{folder}/{pipeline.name}.json"
    padded = padded_state(config, pipeline)
    for key, feature in features.items():
        wanted = NormalizationMode(said.get(feature.type, NormalizationMode.IDENTITY))
        is_done = wanted is NormalizationMode.IDENTITY
        for step, name in _on_its_way(pipeline.steps, kind, key, feature):
            mode = step.norm_map.get(_type(step, name, feature), NormalizationMode.IDENTITY)
            if mode is not NormalizationMode.IDENTITY:
                own = step.features.get(name, feature)
                if name == OBS_STATE and padded:
                    own = PolicyFeature(own.type, padded)
                _check_step(where, step, name, own, mode)
                is_done = True
        if not is_done:
            raise PolicyNotFound(
                f"{where} has no step that normalises {key!r}, but config.json says {wanted.value}; {_REMEDY}"
            )
        if feature.type is FeatureType.VISUAL:
            _check_brightness(where, config, pipeline, kind, key, feature)


def _check_own_way(where: str, pipeline: Any, features: Mapping[str, PolicyFeature]) -> None:
    """Check steps that normalise in a way of their own, whatever config.json says: groot's do.

    Such a step brings states and actions between `min` and `max` of its `stats`, or actions between those of
    their groups (`raw_stats`, by `modality_config`).
    """
    named = {it: f for it, f in features.items() if f.type in (FeatureType.STATE, FeatureType.ACTION)}
    for step in pipeline.steps:
        has_groups = bool(getattr(step, "raw_stats", None) and getattr(step, "modality_config", None))
        if hasattr(step, "stats") and getattr(step, "normalize_min_max", False):
            for key in named if not has_groups else named.keys() - {ACTION}:
                _check_step(where, step, key, named[key], NormalizationMode.MIN_MAX)
        elif hasattr(step, "raw_stats") and not hasattr(step, "stats"):
            found, needed = _grouped(step) if has_groups else 0, features[ACTION].shape[0]
            if found != needed:
                raise PolicyNotFound(
                    f"{where} has statistics of {found} numbers in its groups of {ACTION!r}, but the feature "
                    f"has {needed}: the rest would be left as it is; {_REMEDY}"
                )


def _grouped(step: Any) -> int:
    """Numbers of an action that a step has statistics of, group by group."""
    groups = step.raw_stats.get(ACTION, {})
    keys = step.modality_config.get(ACTION, {}).get("modality_keys", [])
    return sum(len(np.atleast_1d(groups[key]["min"]).T) for key in keys if "min" in groups.get(key, {}))


def _on_its_way(
    steps: Iterable[Any], kind: type, key: str, feature: PolicyFeature
) -> Iterator[tuple[Any, str]]:
    """The steps of a kind that a feature passes, and what it is called there; last first."""
    for step in reversed(list(steps)):
        if isinstance(step, RenameObservationsProcessorStep):
            key = next((old for old, new in step.rename_map.items() if new == key), key)
        elif isinstance(step, kind) and (feature.type is FeatureType.ACTION or _takes(step, key)):
            yield step, key


def _takes(step: Any, key: str) -> bool:
    chosen = step.normalize_observation_keys
    return key in step.features and (chosen is None or key in chosen)


def _type(step: Any, key: str, feature: PolicyFeature) -> FeatureType:
    return FeatureType.ACTION if feature.type is FeatureType.ACTION else step.features[key].type


def _held(step: Any) -> dict[str, dict[str, Tensor]]:
    """Feature -> name -> statistic."""
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in step.state_dict().items():
        key, _, statistic = name.rpartition(".")
        held.setdefault(key, {})[statistic] = tensor
    return held


def _check_step(where: str, step: Any, key: str, feature: PolicyFeature, mode: NormalizationMode) -> None:
    """Check the statistics that one step has for one feature."""
    held = _held(step)
    if key not in held:
        meant = _meant(held, key)
        remedy = f"rename {meant[0]!r} to {key!r} in its state file" if len(meant) == 1 else _REMEDY
        raise PolicyNotFound(
            f"{where} has no statistics of {key!r}, so it would not be normalised ({mode.value}); those "
            f"there are of {', '.join(map(repr, sorted(held))) or 'nothing'}; {remedy}"
        )
    low, high, *_ = MODES[mode]
    lacking = [name for name in (low, high) if name not in held[key]]
    if lacking:
        raise PolicyNotFound(
            f"{where} has no {lacking[0]!r} of {key!r}, which {mode.value} needs; it has "
            f"{', '.join(sorted(held[key]))}; {_REMEDY}"
        )
    first, second = (held[key][name].float() for name in (low, high))
    for name, value in ((low, first), (high, second)):
        if not _fits(value, feature):
            raise PolicyNotFound(
                f"{where} has {name!r} of {key!r} of shape {tuple(value.shape)}, but the feature has "
                f"{tuple(feature.shape)}: statistics of another dataset; {_REMEDY}"
            )
    if bool((second < (0 if high == "std" else first)).any()):
        raise PolicyNotFound(f"{where} has a {high!r} of {key!r} below what it can be; {_REMEDY}")
    still = second == 0 if high == "std" else second == first
    if key == ACTION and still.all():
        raise PolicyNotFound(
            f"{where} says that no number of {key!r} ever changes ({low} and {high}), so every action would "
            f"be the same; {_REMEDY}"
        )


def _loosely(name: str) -> str:
    """A name as lerobot's buffers and its migration may have spelled it."""
    return name.replace("_", ".").replace("/", ".")


def _fits(value: Tensor, feature: PolicyFeature) -> bool:
    """Whether a statistic has a number for each of a feature's, pictures one for each channel."""
    shape = tuple(feature.shape)
    if feature.type is not FeatureType.VISUAL:
        return tuple(value.shape) == shape
    try:
        return torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        return False


def _check_brightness(
    where: str, config: Any, pipeline: Any, kind: type, key: str, feature: PolicyFeature
) -> None:
    """Refuse statistics of pictures of another unit than they come in, such as [0, 255] instead of [0, 1]."""
    steps = list(pipeline.steps)
    for step, name in _on_its_way(steps, kind, key, feature):
        scale = MODES.get(step.norm_map.get(feature.type, NormalizationMode.IDENTITY))
        if scale is None:
            continue
        brightest = max(float(_held(step)[name][it].max()) for it in scale[:2])
        white = _white(steps[: steps.index(step)], config, name)
        if white is not None and brightest > _BRIGHTEST * max(white, 1.0):
            raise PolicyNotFound(
                f"{where} has statistics of {key!r} up to {brightest:g}, those of pictures in [0, 255], but "
                f"pictures come in [0, {white:g}]: all of them would look alike; divide its mean, std, min, "
                "max and quantiles by 255"
            )
        if white is not None and white > _DIMMEST * brightest:
            raise PolicyNotFound(
                f"{where} has statistics of {key!r} up to {brightest:g}, but the steps before let pictures "
                f"come in [0, {white:g}]: they would be normalised to hundreds; {_REMEDY}, or mend the steps"
            )


def _white(before: Sequence[Any], config: Any, name: str) -> float | None:
    """What white is after some steps, where pictures enter in [0, 1]; None where that cannot be tried.

    Steps of lerobot's own leave it alone. Somebody else's are shown one white observation.
    """
    if all(type(step).__module__.startswith(("lerobot.processor.", "vivace.")) for step in before):
        return 1.0
    outside = {new: old for old, new in renames(SimpleNamespace(steps=before)).items()}
    seen = {outside.get(it, it): torch.ones(1, *known.shape) for it, known in config.input_features.items()}
    moment: Any = create_transition(observation=seen, complementary_data={"task": [""]})
    try:
        for step in before:
            moment = step(moment)
        return float(moment[TransitionKey.OBSERVATION][name].float().max())
    except Exception:  # anybody's step may need what only a robot has
        return None
