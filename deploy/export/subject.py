"""What graphs are made of and proven by: a policy under its plans, and observations as graphs take them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.export.packed import Packing, entered, packing, reads_packed
from vivace.deploy.export.processors import picture_sizes
from vivace.deploy.export.prompts import padded
from vivace.deploy.inference.ort_policy import normalised
from vivace.deploy.inference.tokenize import InstructionTokenizer
from vivace.policies.backports import Self
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy


@dataclass(frozen=True)
class Subject:
    """What is exported."""

    loaded: LoadedPolicy
    """The checkpoint; its staged form takes what graphs take."""
    runs: Mapping[str, Execution]
    """Plan -> how it is run; so do these."""
    data: CalibrationData
    """Observations, as graphs take them."""
    packs: Packing | None = None
    """What graphs do to observations first, in the place of the checkpoint's preprocessor."""

    @classmethod
    def of(
        cls, loaded: LoadedPolicy, runs: Mapping[str, Execution], data: CalibrationData, bundle: Bundle
    ) -> Self:
        """Return it of a checkpoint and its observations, as its own preprocessor prepares them."""
        if not reads_packed(loaded):
            return cls(loaded, runs, padded(data, bundle.prompt))
        packs = packing(loaded, picture_sizes(bundle.spec, bundle.renamed or {}))
        staged = entered(loaded.staged, packs)
        under: dict[str, Any] = {
            name: replace(run, policy=entered(run.policy, packs)) for name, run in runs.items()
        }
        return cls(replace(loaded, staged=staged), under, _unpacked(loaded, data, bundle), packs)


def _unpacked(loaded: LoadedPolicy, data: CalibrationData, bundle: Bundle) -> CalibrationData:
    """Observations normalised one by one, with their prompts, as on a robot."""
    keys = bundle.spec.observation_shapes
    if missing := [key for key in (*keys, "task") if key not in data.raw]:
        raise BadSetting(
            f"the graphs of policy {bundle.spec.type!r} take what a robot sees, but the observations to "
            f"prove them on lack {', '.join(missing)} as a robot gives it; take some of a dataset or a world"
        )
    tokenize, rows = InstructionTokenizer(bundle), []
    for i, task in enumerate(data.raw["task"]):
        ready = normalised(bundle, {key: np.asarray(data.raw[key])[i : i + 1] for key in keys})
        rows.append(ready | tokenize(task, ready))
    move = loaded.placement.move
    batch = {key: move(torch.from_numpy(np.concatenate([row[key] for row in rows]))) for key in rows[0]}
    return replace(data, batch=batch)
