"""Read CogACT's own run folders.

    RUN/config.json               {"vla": {"base_vlm": "prism-dinosiglip-224px+7b", …}}
    RUN/dataset_statistics.json   {dataset: {"action": {"q01", "q99", "mask", …}, …}}
    RUN/checkpoints/<one>.pt      {"model": {"vision_backbone", "projector", "llm_backbone", "action_model"}}

The pickle is read with `weights_only=True` and memory-mapped: nothing in it is executed, and the 30 GB of
the 7-billion form do not have to fit twice.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from vivace.policies.errors import PolicyNotFound
from vivace.policies.families.cogact.dit import SIZES
from vivace.policies.families.cogact.policy import CogACTConfig
from vivace.policies.families.originals import Original, action_statistics, check_read, read_json, rename

CAMERA = "observation.images.primary"
ARCHITECTURES: dict[str, dict[str, Any]] = {"prism-dinosiglip-224px+7b": {}}
"""base_vlm -> fields of `CogACTConfig` that differ from the defaults."""

_PARTS: dict[str, dict[str, str | None]] = {
    "vision_backbone": {
        "dino_featurizer.": "vision_backbone.dino_featurizer.",
        "siglip_featurizer.": "vision_backbone.siglip_featurizer.",
    },
    "projector": {"projector.": "projector.projector."},
    "llm_backbone": {"llm.model.": "language.", "llm.lm_head.": None},
    "action_model": {"net.": "action_model.net.", "net.history_embedder.": None},
}
"""Part of the original -> prefixes it may hold, and ours."""


def convert_state_dict(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rename the original's four state dicts to `CogACTPolicy`'s one.

    Raises:
        PolicyNotFound: a part is missing, or holds something unknown.
    """
    missing = sorted(set(_PARTS) - set(parts))
    if missing:
        raise PolicyNotFound(
            f"the checkpoint's 'model' has parts {sorted(parts)}, but {missing[0]!r} is needed; "
            "this is not a CogACT checkpoint"
        )
    renamed: dict[str, Tensor] = {}
    for part, prefixes in _PARTS.items():
        renamed |= rename(parts[part], prefixes, part)
    return renamed


def read(run: Path, unnorm_key: str | None, architecture: Mapping[str, Any] | None = None) -> Original:
    """Read a run folder; see `originals.convert`."""
    file = run / "dataset_statistics.json"
    statistics = action_statistics(read_json(file), file, unnorm_key)
    return Original(*read_run(run, architecture), {"action": statistics})


def read_run(
    run: Path, architecture: Mapping[str, Any] | None = None
) -> tuple[CogACTConfig, dict[str, Tensor]]:
    """Read config and weights of a run folder.

    Args:
        run: the folder.
        architecture: fields of `CogACTConfig`; by the folder's base_vlm when None.

    Raises:
        PolicyNotFound: a file is missing or damaged, holds more than tensors, or is another architecture's.
    """
    base = read_json(run / "config.json").get("vla", {}).get("base_vlm")
    if architecture is None:
        if base not in ARCHITECTURES:
            raise PolicyNotFound(
                f"{run / 'config.json'} has vla.base_vlm {base!r}; known: {', '.join(ARCHITECTURES)}"
            )
        architecture = ARCHITECTURES[base]
    weights = convert_state_dict(_load_parts(run / "checkpoints"))
    position, embed = (
        weights.get(f"action_model.net.{name}")
        for name in ("positional_embedding", "x_embedder.linear.weight")
    )
    if position is None or embed is None:
        raise PolicyNotFound(f"{run}: action_model lacks its embeddings; this is not a CogACT checkpoint")
    depth = len({name.split(".")[3] for name in weights if name.startswith("action_model.net.blocks.")})
    size = next((s for s, (d, w, _) in SIZES.items() if (d, w) == (depth, position.shape[1])), "custom")
    settings: dict[str, Any] = {
        "input_features": {CAMERA: None},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (embed.shape[1],))},
        "device": "cpu",
        "horizon": position.shape[0] - 1,
        "n_action_steps": position.shape[0] - 1,
        "action_head": size,
        "gripper_dims": (embed.shape[1] - 1,),
    } | dict(architecture)
    edge = settings.get("image_size", CogACTConfig.image_size)
    settings["input_features"] = {CAMERA: PolicyFeature(FeatureType.VISUAL, (3, edge, edge))}
    return CogACTConfig(**settings), weights


def _load_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    files = sorted(folder.glob("*.pt"))
    if len(files) != 1:
        raise PolicyNotFound(f"{folder} holds {len(files)} .pt files; exactly one is needed")
    check_read(folder.parent, [str(files[0].relative_to(folder.parent))])
    try:
        loaded = torch.load(files[0], map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise PolicyNotFound(
            f"{files[0]} holds more than tensors, so it is not unpickled; convert it where you trust it: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise PolicyNotFound(
            f"{files[0]} is truncated or not a checkpoint ({error}); copy it again"
        ) from error
    parts = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise PolicyNotFound(f"{files[0]} has no dict of state dicts under 'model'; another format")
    for name, part in parts.items():
        odd = next((key for key, value in part.items() if not isinstance(value, Tensor)), None)
        if odd is not None:
            raise PolicyNotFound(f"{files[0]}: {name}.{odd} is no tensor; another format")
    return parts
