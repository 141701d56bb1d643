"""What a policy's observations are called outside: as the robot, a world or a dataset has them.

A checkpoint may rename observations in its preprocessor (lerobot's `--rename_map`): the robot's names are the
ones before. It may have cameras that nobody has (lerobot's `empty_cameras`), which the policy fills and masks
itself, and it may bring pictures of any size to its own. A policy that pads its state (pi0, smolvla) is given
that of the robot it was trained for, whatever config.json still says of another.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.processor import NormalizerProcessorStep, RenameObservationsProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE

from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting
from vivace.policies.seeing import may_lack
from vivace.policies.spec import IMAGES, PolicySpec
from vivace.policies.staged import StagedPolicy, is_prepared

RENAMING = "rename_observations_processor"
"""lerobot's name of the step that renames, as overrides are given by."""
_RESIZES = (
    "image_resize_shape",
    "resize_shape",
    "resize_imgs_with_padding",
    "resize_images_to",
    "image_resolution",
    "image_size",
    "image_max_pixels",
)
"""Settings under which lerobot's policies, and ours, bring every camera's pictures to one size."""


def renames(preprocess: Any) -> dict[str, str]:
    """Return the robot's names -> the policy's of a preprocessor, those that differ."""
    found: dict[str, str] = {}
    for step in getattr(preprocess, "steps", ()):
        if isinstance(step, RenameObservationsProcessorStep):
            before = {new: old for old, new in found.items()}
            found |= {before.get(old, old): new for old, new in step.rename_map.items()}
    return found


def resizes(config: Any) -> bool:
    """Whether a policy brings pictures of any size to its own."""
    return any(getattr(config, name, None) for name in _RESIZES)


def padded_state(config: Any, preprocess: Any) -> tuple[int, ...] | None:
    """Shape of the state that a policy is given and pads, where config.json says another robot's.

    lerobot's training from a base keeps the base's state in config.json, such as pi0's 32 numbers, and
    normalises by the statistics of the dataset; so these say what the robot has. None where both agree, or
    where the policy does not pad, or does so before it normalises.

    Source: lerobot 0.6 `policies/factory.make_policy`, `scripts/lerobot_train.py`.
    """
    most = getattr(config, "max_state_dim", None) or 0
    for step in getattr(preprocess, "steps", ()):
        if getattr(step, "max_state_dim", None):
            return None
        if isinstance(step, NormalizerProcessorStep):
            widths = {
                tuple(tensor.shape)
                for name, tensor in step.state_dict().items()
                if name.rpartition(".")[0] == OBS_STATE and not name.endswith(".count")
            }
            said = step.features.get(OBS_STATE)
            if said is None or len(widths) != 1 or tuple(said.shape) in widths:
                return None
            (shape,) = widths
            return shape if len(shape) == 1 and shape[0] <= most else None
    return None


def take_actions_of(
    config: PreTrainedConfig, statistics: Mapping[str, Any], names: Sequence[str] = ()
) -> None:
    """Give a policy that pads its actions the width of a dataset's, as lerobot's training does to a base.

    Args:
        config: of the policy; changed before the policy is built of it.
        statistics: lerobot's of the dataset, by feature.
        names: of the dimensions of its actions, if it has them; they say which are not relative.
    """
    if names and "action_feature_names" in vars(config):
        vars(config)["action_feature_names"] = list(names)
    known = statistics.get(ACTION, {}).get("mean")
    said, most = config.action_feature, getattr(config, "max_action_dim", None) or 0
    if known is not None and said is not None and len(known) <= most:
        config.output_features = {
            **(config.output_features or {}),
            ACTION: PolicyFeature(FeatureType.ACTION, (len(known),)),
        }


def as_the_robot_has_them(spec: PolicySpec, config: Any, preprocess: Any) -> PolicySpec:
    """Return a spec whose observations are those that are to be given, under their names outside.

    Args:
        spec: whose observations are the policy's own.
        config: the policy's, lerobot's.
        preprocess: the checkpoint's preprocessor.

    Raises:
        BadSetting: two names become one.
    """
    empty = {f"{IMAGES}empty_camera_{i}" for i in range(getattr(config, "empty_cameras", 0) or 0)}
    outside: dict[str, str] = {}
    for name, own in renames(preprocess).items():
        if own in outside:
            raise BadSetting(
                f"rename_map turns both {outside[own]!r} and {name!r} into {own!r}; give each its own name"
            )
        outside[own] = name
    shapes = {outside.get(key, key): s for key, s in spec.observation_shapes.items() if key not in empty}
    if len(shapes) < len(spec.observation_shapes.keys() - empty):
        raise BadSetting(
            f"rename_map {renames(preprocess)} gives two of the policy's observations "
            f"{', '.join(spec.observation_shapes)} one name; give each its own"
        )
    state = outside.get(OBS_STATE, OBS_STATE)
    if state in shapes and (shape := padded_state(config, preprocess)):
        shapes[state] = shape
    ensemble = getattr(config, "temporal_ensemble_coeff", None)
    return replace(spec, observation_shapes=shapes, resizes=resizes(config), temporal_ensemble=ensemble)


def absent_cameras(staged: StagedPolicy, has: Collection[str], named: Collection[str]) -> tuple[str, ...]:
    """Return the cameras that a policy names, nobody has, and it acts without, by their names outside.

    As in lerobot, what there is must be among what the policy names: a camera of another name may be the one
    that seems to lack. Then, and where there is none at all, none is taken for absent.

    Source: lerobot 0.6 `policies/utils.validate_visual_features_consistency`.

    Args:
        staged: the policy.
        has: observations that robot, world or data have; empty: not known.
        named: cameras that somebody says there are.
    """
    cameras = [key for key in staged.spec.observation_shapes if is_image(key)] if may_lack(staged) else []
    there = {key for key in has if is_image(key)}
    if not there or not there <= set(cameras):
        return ()
    return tuple(key for key in cameras if key not in there and key not in named)


def without_cameras(staged: StagedPolicy, absent: Collection[str], preprocess: Any) -> StagedPolicy:
    """Return the staged form of a policy that is not asked for these cameras, by their names outside.

    Args:
        staged: a `LackingPolicy`, where there are any.
        absent: cameras of its spec.
        preprocess: the checkpoint's preprocessor.
    """
    if not absent:
        return staged
    own, twin = renames(preprocess), cast(Any, staged)
    twin = twin.without_cameras([own.get(key, key) for key in absent])
    shapes = {key: it for key, it in staged.spec.observation_shapes.items() if key not in absent}
    twin.spec = replace(staged.spec, observation_shapes=shapes)
    if is_prepared(twin):
        twin = twin.prepared_by(preprocess)
    return twin


def check_renaming(rename_map: Mapping[str, str], config: Any) -> None:
    """Raise `BadSetting` if observations are renamed to what the policy does not know."""
    unknown = sorted(set(rename_map.values()) - set(config.input_features))
    if unknown:
        raise BadSetting(
            f"rename_map renames to {', '.join(map(repr, unknown))}, which the policy does not have; its "
            f"observations: {', '.join(config.input_features)}"
        )
