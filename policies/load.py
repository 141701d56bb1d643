"""Load a checkpoint folder as a staged policy with its processors and fingerprint."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors import SafetensorError, safe_open

from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.dtype import cast_weights
from vivace.policies.errors import BadSetting, PolicyNotFound
from vivace.policies.execution import Execution, as_trained
from vivace.policies.features import RENAMING, as_the_robot_has_them, check_renaming
from vivace.policies.fingerprint import fingerprint
from vivace.policies.placement import Placement, read_device, read_dtype
from vivace.policies.registry import Registry
from vivace.policies.spec import ActionKind, Fingerprint
from vivace.policies.staged import StagedPolicy

ADAPTERS = Registry(
    "policy type",
    "vivace.policies",
    {
        "dp_transformer": "vivace.policies.families.dp_transformer.staged:StagedDPTransformer",
        "diffusion": "vivace.policies.adapters.diffusion:StagedDiffusion",
        "multi_task_dit": "vivace.policies.adapters.multi_task_dit:StagedMultiTaskDiT",
        "cogact": "vivace.policies.families.cogact.staged:StagedCogACT",
        "token_vla": "vivace.policies.families.token_vla.staged:StagedTokenVLA",
        "pi0_fast": "vivace.policies.adapters.pi0_fast:StagedPI0Fast",
    },
)
"""lerobot policy type -> its adapter, whose module also registers a policy that lerobot lacks."""
register_adapter = ADAPTERS.register


def _zoo() -> Path:
    """Folder of the trained checkpoints: beside this file in a checkout, else where vivace-zoo put it."""
    beside = Path(__file__).parent / "zoo"
    installed = None if beside.is_dir() else find_spec("vivace.zoo")
    return Path(next(iter(installed.submodule_search_locations or ()))) if installed else beside


ZOO = _zoo()
"""Trained checkpoints; the distribution vivace-zoo holds them."""


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

    @property
    def as_trained(self) -> Execution:
        """The execution that the checkpoint asks for."""
        return as_trained(self.staged)

    @property
    def placement(self) -> Placement:
        """Where the policy computes, and in what."""
        return self.staged.placement


def load_policy(
    path: str | Path,
    device: str = "cpu",
    action_kinds: tuple[ActionKind, ...] = (),
    dtype: str = "",
    rename_map: Mapping[str, str] | None = None,
) -> LoadedPolicy:
    """Load a lerobot checkpoint folder.

    Args:
        path: folder with config.json, model.safetensors and the processor files, or `zoo/<name>`.
        device: where it runs.
        action_kinds: meaning of each action dimension; as the checkpoint says, or unknown, when empty.
        dtype: float32, bfloat16 or float16; as its weights are loaded by lerobot when empty. The fingerprint
            is that of the weights before they are cast, so a plan fits the policy at any dtype.
        rename_map: names of observations as the robot or the dataset has them -> the policy's, as lerobot's
            `--rename_map`; as the checkpoint's processors say when not given.

    Raises:
        BadSetting: the machine lacks the device, the dtype is unknown or too small for the weights, or
            observations are renamed to what the policy lacks.
        PolicyNotFound: the folder is missing, is not a lerobot checkpoint, or is damaged.
    """
    read_device(device)
    wanted = read_dtype(dtype) if dtype else None
    folder = resolve(path)
    config = _read_config(folder, device)
    _check_weights(folder)
    policy_class = get_policy_class(config.type)
    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    if rename_map:
        check_renaming(rename_map, config)
        overrides[RENAMING] = {"rename_map": dict(rename_map)}
    try:
        with redirect_stdout(sys.stderr):  # lerobot prints; stdout is for results
            policy = policy_class.from_pretrained(folder, config=config, strict=True).to(device).eval()
    except (RuntimeError, ValueError) as error:
        raise PolicyNotFound(f"{folder}: model.safetensors does not fit config.json: {error}") from error
    try:
        preprocess, postprocess = make_pre_post_processors(
            config,
            str(folder),
            preprocessor_overrides=overrides,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise PolicyNotFound(
            f"{folder} lacks usable processor files "
            f"(policy_preprocessor.json, policy_postprocessor.json): {error}"
        ) from error
    _check_finite(folder, policy)
    _check_statistics(folder, preprocess, postprocess)
    staged = stage(policy, action_kinds, preprocess)
    mark = fingerprint(policy, staged.spec.block_ids, (preprocess, postprocess))
    if wanted is not None:
        cast_weights(policy, wanted)
        _check_range(folder, policy, dtype)
        staged = stage(
            policy, action_kinds, preprocess
        )  # what it made of the weights before is not theirs any more
    return LoadedPolicy(folder, policy, staged, preprocess, postprocess, mark)


def stage(policy: Any, action_kinds: tuple[ActionKind, ...] = (), preprocess: Any = None) -> StagedPolicy:
    """Take a lerobot policy apart with the adapter of its type; without one it is one opaque block.

    Args:
        policy: lerobot's own object.
        action_kinds: meaning of each action dimension; as the checkpoint says, or unknown, when empty.
        preprocess: the checkpoint's preprocessor, which may rename what the robot gives.
    """
    adapter: Any = ADAPTERS.find(policy.config.type) or OpaquePolicy
    staged = adapter(policy, action_kinds)
    staged.spec = as_the_robot_has_them(staged.spec, policy.config, preprocess)
    return staged


def resolve(path: str | Path) -> Path:
    """Find a checkpoint folder, in the zoo too; raises `PolicyNotFound` naming the zoo's checkpoints."""
    folder = Path(path)
    if folder.parts[:1] == ("zoo",) and not folder.exists():
        folder = ZOO.joinpath(*folder.parts[1:])
    if (folder / "pretrained_model").is_dir():
        folder = folder / "pretrained_model"
    if not folder.is_dir():
        names = ", ".join(f"zoo/{config.parent.name}" for config in sorted(ZOO.glob("*/config.json")))
        ours = f"one of: {names}" if names else "install ours: pip install 'vivace[zoo]'"
        raise PolicyNotFound(f"no checkpoint folder at {path}; give a lerobot checkpoint or {ours}")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise PolicyNotFound(f"{folder} has no {name}; a lerobot checkpoint (save_pretrained) is needed")
    return folder


def _read_config(folder: Path, device: str) -> PreTrainedConfig:
    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text()).get("type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise PolicyNotFound(f"{file} is not a JSON object ({error}); restore the checkpoint") from error
    import lerobot.policies  # noqa: F401  registers lerobot's own types

    if isinstance(kind, str):
        ADAPTERS.find(kind)  # its module registers a type that lerobot lacks
    known = PreTrainedConfig.get_known_choices()
    if kind not in known:
        types = ", ".join(sorted({*known, *ADAPTERS.names()}))
        raise PolicyNotFound(f"{file} has policy type {kind!r}; known types: {types}")
    try:
        config = PreTrainedConfig.from_pretrained(folder)
    except Exception as error:  # draccus raises many kinds for a foreign field or value
        raise PolicyNotFound(f"{file} is not a config of lerobot 0.6: {error}") from error
    config.device = device
    return config


def _check_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    try:
        with safe_open(file, "pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise PolicyNotFound(f"{file} is truncated or not safetensors ({error}); copy it again") from error


def _check_finite(folder: Path, policy: torch.nn.Module) -> None:
    for name, weight in policy.named_parameters():
        if not weight.isfinite().all():
            raise PolicyNotFound(
                f"{folder}: weight {name!r} holds NaN or infinity; needed are finite ones; train again, or "
                "copy an earlier checkpoint"
            )
    for name, buffer in policy.named_buffers():
        if buffer.isnan().any():  # infinity is what attention masks are made of
            raise PolicyNotFound(
                f"{folder}: buffer {name!r} holds NaN; train again, or copy an earlier checkpoint"
            )


def _check_range(folder: Path, policy: torch.nn.Module, dtype: str) -> None:
    for name, weight in policy.named_parameters():
        if not weight.isfinite().all():
            raise BadSetting(
                f"{folder}: weight {name!r} is too large for {dtype}; give --policy.dtype=bfloat16 or float32"
            )


def _check_statistics(folder: Path, *pipelines: Any) -> None:
    for pipeline in pipelines:
        for step in pipeline.steps:
            for name, tensor in step.state_dict().items():
                if not torch.isfinite(tensor.float()).all():
                    raise PolicyNotFound(
                        f"{folder}: normaliser statistic {name!r} holds NaN or infinity; "
                        "recompute the dataset statistics and save the checkpoint again"
                    )
