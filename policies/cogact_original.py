"""Read CogACT's own run folders, and convert them once to a lerobot checkpoint folder.

    RUN/config.json               {"vla": {"base_vlm": "prism-dinosiglip-224px+7b", …}}
    RUN/dataset_statistics.json   {dataset: {"action": {"q01", "q99", "mask", …}, …}}
    RUN/checkpoints/<one>.pt      {"model": {"vision_backbone", "projector", "llm_backbone", "action_model"}}

The pickle is read with `weights_only=True` and memory-mapped: nothing in it is executed, and the 30 GB of
the 7-billion form do not have to fit twice.
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from vivace.policies.cogact import CogACTConfig, make_cogact_pre_post_processors
from vivace.policies.dit import SIZES
from vivace.policies.errors import BadSetting, PolicyNotFound

CAMERA = "observation.images.primary"
ARCHITECTURES: dict[str, dict[str, Any]] = {"prism-dinosiglip-224px+7b": {}}
"""base_vlm -> fields of `CogACTConfig` that differ from the defaults."""

_PARTS: dict[str, dict[str, str | None]] = {
    "vision_backbone": {"dino_featurizer.": "", "siglip_featurizer.": ""},
    "projector": {"projector.": ""},
    "llm_backbone": {"llm.model.": "", "llm.lm_head.": None},
    "action_model": {"net.": "", "net.history_embedder.": None},
}
"""Part of the original -> prefixes it may hold; None: not used for acting, left out."""
_OURS = {
    "vision_backbone": "vision_backbone.",
    "projector": "projector.",
    "llm_backbone": "language.",
    "action_model": "action_model.",
}


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
        for name, tensor in parts[part].items():
            known = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
            if known is None:
                raise PolicyNotFound(
                    f"{part} holds {name!r}; its names begin with {', '.join(prefixes)}: another format"
                )
            if prefixes[known] is None or name.endswith("rotary_emb.inv_freq"):
                continue
            ours = name.removeprefix("llm.model.") if part == "llm_backbone" else name
            renamed[_OURS[part] + ours] = tensor
    return renamed


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
    base = _read_json(run / "config.json").get("vla", {}).get("base_vlm")
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


def read_statistics(run: Path, unnorm_key: str | None) -> dict[str, np.ndarray]:
    """Return "q01" and "q99" of the actions; dimensions that are not normalised get -1 and 1.

    Args:
        run: the folder.
        unnorm_key: name of the dataset; may be None if there is only one.

    Raises:
        PolicyNotFound: the file is missing or lacks a statistic.
        BadSetting: the dataset is unknown, or not named though there are several.
    """
    file = run / "dataset_statistics.json"
    found = _read_json(file)
    if unnorm_key is None and len(found) == 1:
        unnorm_key = next(iter(found))
    if unnorm_key not in found:
        said = (
            f"unnorm_key {unnorm_key!r} is not there" if unnorm_key else "several datasets: give unnorm_key"
        )
        raise BadSetting(f"{file}: {said}; datasets: {', '.join(sorted(found))}")
    action = found[unnorm_key].get("action", {})
    lacking = [name for name in ("q01", "q99") if name not in action]
    if lacking:
        raise PolicyNotFound(f"{file}: {unnorm_key!r} lacks action.{lacking[0]}; it has {sorted(action)}")
    low, high = (np.asarray(action[name], np.float32) for name in ("q01", "q99"))
    mask = np.asarray(action.get("mask", np.ones(len(low))), bool)
    return {"q01": np.where(mask, low, -1.0), "q99": np.where(mask, high, 1.0)}


def convert(
    run: Path,
    output: Path,
    tokenizer: Path,
    unnorm_key: str | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> CogACTConfig:
    """Write a run folder as a lerobot checkpoint folder, whole or not at all; returns its config.

    Args:
        run: CogACT's run folder.
        output: folder to make.
        tokenizer: the language model's tokenizer.json.
        unnorm_key: dataset whose statistics bring actions back to the robot's units.
        architecture: fields of `CogACTConfig`; by the folder's base_vlm when None.

    Raises:
        PolicyNotFound: the run folder is incomplete or damaged.
        BadSetting: `unnorm_key` or the tokenizer is unknown, or `output` exists.
    """
    if output.exists():
        raise BadSetting(f"{output} exists already; give another output_dir or remove it")
    try:
        text = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises Exception itself
        raise BadSetting(f"{tokenizer} is not a tokenizer.json ({error})") from error
    statistics = read_statistics(run, unnorm_key)
    config, weights = read_run(run, architecture)
    pre, post = make_cogact_pre_post_processors(config, {"action": statistics}, text)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config._save_pretrained(partial)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / "model.safetensors")
    pre.save_pretrained(partial)
    post.save_pretrained(partial)
    os.replace(partial, output)
    return config


def _load_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    files = sorted(folder.glob("*.pt"))
    if len(files) != 1:
        raise PolicyNotFound(f"{folder} holds {len(files)} .pt files; exactly one is needed")
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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise PolicyNotFound(f"no {file}; a CogACT run folder has one") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PolicyNotFound(f"{file} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise PolicyNotFound(f"{file} holds a {type(found).__name__}; an object is needed")
    return found
