"""From observations in the robot's units to chunks in the robot's units."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vivace.policies.errors import ObservationMismatch
from vivace.policies.load import LoadedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.staged import Batch, Execution, sample


class Session:
    """A loaded policy under one execution.

    Args:
        loaded: checkpoint with processors.
        execution: how to run it; the checkpoint's own way when not given.
        task: instruction, for policies that read one.
    """

    def __init__(self, loaded: LoadedPolicy, execution: Execution | None = None, task: str = ""):
        self.loaded = loaded
        self.execution = execution or Execution.of(loaded.staged)
        self.spec = self.execution.policy.spec
        self.task = task

    def prepare(self, observations: Mapping[str, np.ndarray]) -> Batch:
        """Normalise observations {key: (B, To, ...)}; images are HWC uint8 in [0, 255].

        Raises:
            ObservationMismatch: a key is missing, a shape differs or a value is not finite.
        """
        batch: dict[str, Any] = {}
        for key, shape in self.spec.observation_shapes.items():
            if key not in observations:
                raise ObservationMismatch(
                    f"observation has keys {sorted(observations)}, but the policy needs {key!r} of shape "
                    f"{shape}; map your names onto lerobot's keys"
                )
            value = torch.from_numpy(np.ascontiguousarray(observations[key]))
            if key.startswith("observation.image"):
                value = value.movedim(-1, -3).float() / 255
            if tuple(value.shape[1:]) != (self.spec.n_obs_steps, *shape):
                raise ObservationMismatch(
                    f"observation {key!r} has shape {tuple(value.shape)}, "
                    f"the policy needs (B, {self.spec.n_obs_steps}, {', '.join(map(str, shape))})"
                )
            if not value.isfinite().all():
                raise ObservationMismatch(
                    f"observation {key!r} holds NaN or infinity; check the sensor before calling the policy"
                )
            batch[key] = value.float()
        rows = len(next(iter(batch.values())))
        ready = self.loaded.preprocess(batch | {"task": [self.task] * rows})
        return {
            k: v for k, v in ready.items() if isinstance(v, torch.Tensor) and k.startswith("observation.")
        }

    def predict(
        self, observations: Mapping[str, np.ndarray], noise_keys: Sequence[tuple[int, ...]]
    ) -> np.ndarray:
        """Predict chunks (B, H - first_action, A) in the robot's units.

        Args:
            observations: key -> (B, To, ...), newest last.
            noise_keys: one key per row naming its noise stream, e.g. (episode seed, tick).
        """
        actions = sample(self.execution, self.prepare(observations), EpisodeNoise(noise_keys))
        actions = self.loaded.postprocess(actions[:, self.spec.first_action :])
        return actions.cpu().numpy()
