"""What a measured latency depends on: known ones are good for the very same thing only."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.accel.technique import CalibrationData
from vivace.policies.batch import tensors
from vivace.policies.load import LoadedPolicy
from vivace.policies.session import Session

_PACKAGES = ("policies", "accel", "deploy", "eval")


def digest(value: Any) -> str:
    """Hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def describe_run(session: Session) -> dict[str, Any]:
    """What a session runs, as plain data: the whole plan, its tensors, how chunks continue each other."""
    plan = session.execution.plan
    techniques = () if plan is None else plan.techniques
    return {
        "policy": describe_policy(session.loaded),
        "techniques": [] if plan is None else plan.to_json()["techniques"],
        "tensors": [_arrays_digest(getattr(technique, "tensors", {})) for technique in techniques],
        "chunking": None if session.chunking is None else vars(session.chunking),
        "n_action_steps": session.spec.n_action_steps,
        **({} if session.spec.request_at is None else {"request_at": session.spec.request_at}),
        "task": session.task,
    }


def describe_policy(loaded: LoadedPolicy) -> dict[str, Any]:
    """Weights, config, dtype and processors of a checkpoint."""
    files = sorted(loaded.path.glob("policy_*processor*"))
    return {
        "weights": loaded.fingerprint.weights,
        "config": loaded.fingerprint.config,
        "dtype": loaded.dtype,
        "processors": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }


def describe_observations(data: CalibrationData) -> dict[str, Any]:
    """Observations as hashes, and the noise that goes with them."""
    tasks = list(data.raw.get("task", ()))
    raw = {key: value for key, value in data.raw.items() if key != "task"}
    return {
        "prepared": _arrays_digest(tensors(data.batch)),
        "raw": _arrays_digest(raw),
        "tasks": tasks,
        "noise": data.noise_keys,
    }


@cache
def source_digest() -> str:
    """Hash of vivace's own code: a change in it may change what was measured."""
    found = hashlib.sha256()
    for folder in source_folders():
        for file in sorted(folder.rglob("*.py")):
            found.update(f"{folder.name}/{file.relative_to(folder)}".encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def source_folders() -> list[Path]:
    """Where the code is that runs, or times, a chunk."""
    return [Path(str(import_module(f"vivace.{package}").__file__)).parent for package in _PACKAGES]


def _arrays_digest(arrays: Mapping[str, Any]) -> str:
    """Hash of named arrays or tensors."""
    found = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        else:
            array = np.ascontiguousarray(value)
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(array.data)
    return found.hexdigest()
