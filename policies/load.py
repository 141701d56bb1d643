"""Load a checkpoint as a staged policy with its processors and fingerprint."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vivace.policies.adapters.opaque import OpaquePolicy, check_alone
from vivace.policies.checkpoint.config import read_config
from vivace.policies.checkpoint.find import resolve
from vivace.policies.checkpoint.former import statistics_in_weights
from vivace.policies.checkpoint.lora import base_of, has_adapter, merge
from vivace.policies.checkpoint.processors import load_processors
from vivace.policies.checkpoint.statistics import check_statistics, lacks_statistics
from vivace.policies.checkpoint.weights import check_finite, check_range, load_weights
from vivace.policies.dtype import cast_weights
from vivace.policies.execution import Execution, as_trained
from vivace.policies.features import (
    absent_cameras,
    as_the_robot_has_them,
    check_renaming,
    take_actions_of,
    without_cameras,
)
from vivace.policies.fingerprint import fingerprint
from vivace.policies.placement import Placement, dtype_name, most_weights, read_device, read_dtype
from vivace.policies.registry import Registry
from vivace.policies.spec import ActionKind, Fingerprint
from vivace.policies.staged import StagedPolicy, is_prepared

ADAPTERS = Registry(
    "policy type",
    "vivace.policies",
    {
        "dp_transformer": "vivace.policies.families.dp_transformer.staged:StagedDPTransformer",
        "diffusion": "vivace.policies.adapters.diffusion:StagedDiffusion",
        "act": "vivace.policies.adapters.act:StagedACT",
        "multi_task_dit": "vivace.policies.adapters.multi_task_dit:StagedMultiTaskDiT",
        "cogact": "vivace.policies.families.cogact.staged:StagedCogACT",
        "token_vla": "vivace.policies.families.token_vla.staged:StagedTokenVLA",
        "pi0": "vivace.policies.adapters.pi0:StagedPI0",
        "pi05": "vivace.policies.adapters.pi05:StagedPI05",
        "pi0_fast": "vivace.policies.adapters.pi0_fast:StagedPI0Fast",
        "groot": "vivace.policies.adapters.groot:StagedGroot",
        "smolvla": "vivace.policies.adapters.smolvla:StagedSmolVLA",
        "xvla": "vivace.policies.adapters.xvla:StagedXVLA",
    },
)
"""lerobot policy type -> its adapter, whose module also registers a policy that lerobot lacks."""
register_adapter = ADAPTERS.register


@dataclass(frozen=True)
class LoadedPolicy:
    """A checkpoint, ready to run."""

    path: Path
    policy: Any
    """lerobot's own object, untouched."""
    staged: StagedPolicy
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    """Normalise observations, as the checkpoint asks."""
    postprocess: Callable[[torch.Tensor], torch.Tensor]
    """Bring actions back to the robot's units."""
    fingerprint: Fingerprint
    absent: tuple[str, ...] = ()
    """Cameras that the policy names, nobody has, and it acts without, as it does in lerobot."""
    is_base: bool = False
    """Whether the checkpoint holds no statistics of normalisation: those it runs with, if any, are lent."""

    @property
    def as_trained(self) -> Execution:
        """The execution that the checkpoint asks for."""
        return as_trained(self.staged)

    @property
    def placement(self) -> Placement:
        """Where the policy computes, and in what."""
        return self.staged.placement

    @property
    def dtype(self) -> str:
        """Name of the dtype that most of the weights are in; of a half lerobot keeps some in float32."""
        return dtype_name(most_weights(self.policy.parameters()))


def load_policy(
    path: str | Path,
    device: str = "cpu",
    action_kinds: tuple[ActionKind, ...] = (),
    dtype: str = "",
    rename_map: Mapping[str, str] | None = None,
    config: Any = None,
    statistics: Mapping[str, Any] | None = None,
    action_names: Sequence[str] = (),
    has: Collection[str] = (),
) -> LoadedPolicy:
    """Load a lerobot checkpoint.

    Args:
        path: folder with config.json, model.safetensors and the processor files, or with a LoRA adapter; that
            of a training run; `zoo/<name>`; or a name on the Hub, `owner/name` or `owner/name@revision`.
        device: where it runs.
        action_kinds: meaning of each action dimension; as the checkpoint says, or unknown, when empty.
        dtype: float32, bfloat16 or float16; as its weights are loaded by lerobot when empty. The fingerprint
            is that of the weights before they are cast, so a plan fits the policy at any dtype.
        rename_map: names of observations as the robot or the dataset has them -> the policy's, as lerobot's
            `--rename_map`; as the checkpoint's processors say when not given.
        config: lerobot's, of the policy, where its settings are not to be those of config.json; it says the
            device.
        statistics: lerobot's of a dataset, by feature, where the checkpoint itself holds none at all, as a
            base that is published to be trained; empty: then nothing is normalised, which is enough to count
            and to time. One that holds some runs with its own, always.
        action_names: what lerobot's training calls the actions of that dataset; empty: they have no names.
        has: observations that robot, world or data have, by their own names, where they are known; cameras
            that are not among them are not asked for (`absent_cameras`), of a policy that acts without.

    Raises:
        BadSetting: the machine lacks the device, the dtype is unknown or too small for the weights, or
            observations are renamed to what the policy lacks.
        NoStatistics: it holds no statistics, and none are given.
        PolicyNotFound: there is none, it is not a lerobot checkpoint, or is damaged, or what it says is
            normalised would not be.
        UnsupportedPolicy: its type is known not to act here as it does in lerobot, or not known to.
    """
    read_device(device if config is None else config.device)
    wanted = read_dtype(dtype) if dtype else None
    folder = resolve(path)
    config = read_config(folder, device, ADAPTERS) if config is None else config
    if ADAPTERS.find(config.type) is None:
        check_alone(config)  # before gigabytes are read
    check_renaming(rename_map or {}, config)
    stored = base_of(folder) if has_adapter(folder, config.use_peft) else folder
    features = {**config.input_features, **config.output_features}
    former = statistics_in_weights(stored, features)
    is_base = not former and lacks_statistics(folder, config, is_lent=statistics is not None)
    lent = statistics if is_base else None
    if lent:
        take_actions_of(config, lent, action_names)
    policy = _weighted(folder, stored, config)
    preprocess, postprocess = load_processors(folder, config, former, rename_map, lent)
    if lent != {}:
        check_statistics(folder, config, preprocess, postprocess)
    staged = stage(policy, action_kinds, preprocess)
    mark = fingerprint(policy, staged.spec.block_ids, (preprocess, postprocess))
    if wanted is not None:
        cast_weights(policy, wanted)
        check_range(folder, policy, dtype)
        staged = stage(policy, action_kinds, preprocess)  # what it made of the weights before is not theirs
    absent = absent_cameras(staged, has, rename_map or {})
    staged = without_cameras(staged, absent, preprocess)
    return LoadedPolicy(folder, policy, staged, preprocess, postprocess, mark, absent, is_base)


def _weighted(folder: Path, stored: Path, config: Any) -> Any:
    """Load a policy's weights, merged with those of its adapter where it lies apart from its base."""
    policy = load_weights(stored, config)
    if stored != folder:
        policy = merge(folder, policy)
    check_finite(folder, policy)
    return policy


def fingerprint_of(folder: Path, policy: Any) -> Fingerprint:
    """Return the fingerprint of a policy that lerobot has loaded of a folder, as of `load_policy`.

    Raises:
        PolicyNotFound: its processors are missing or cannot be built.
        UnsupportedPolicy: as of `load_policy`.
    """
    features = {**policy.config.input_features, **policy.config.output_features}
    pipelines = load_processors(folder, policy.config, statistics_in_weights(folder, features))
    return fingerprint(policy, stage(policy).spec.block_ids, pipelines)


def stage(policy: Any, action_kinds: tuple[ActionKind, ...] = (), preprocess: Any = None) -> StagedPolicy:
    """Take a lerobot policy apart with the adapter of its type; without one it is one opaque block.

    Args:
        policy: lerobot's own object.
        action_kinds: meaning of each action dimension; as the checkpoint says, or unknown, when empty.
        preprocess: the checkpoint's preprocessor, which may rename what the robot gives.
    """
    adapter: Any = ADAPTERS.find(policy.config.type) or OpaquePolicy
    staged: Any = adapter(policy, action_kinds)
    staged.spec = as_the_robot_has_them(staged.spec, policy.config, preprocess)
    if preprocess is not None and is_prepared(staged):
        staged = staged.prepared_by(preprocess)
    return staged
