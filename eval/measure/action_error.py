"""How far an execution's actions are from the plain loop's, observation by observation."""

from torch import Tensor

from vivace.accel.technique import CalibrationData
from vivace.policies.execution import Execution, eagerly, sample
from vivace.policies.sampling.noise import EpisodeNoise


def sample_all(execution: Execution, data: CalibrationData) -> Tensor:
    """Normalised actions (B, H, A) of all observations, with their own noise; computed `eagerly`."""
    return sample(eagerly(execution), data.batch, EpisodeNoise(data.noise_keys), data.draft)


def action_errors(execution: Execution, reference: Tensor, data: CalibrationData) -> list[float]:
    """Mean absolute difference of normalised actions, one a row of `data`.

    Args:
        execution: what is judged.
        reference: actions (B, H, A) of the plain loop on `data`, with the same noise.
        data: observations.
    """
    return row_errors(sample_all(execution, data), reference)


def row_errors(actions: Tensor, reference: Tensor) -> list[float]:
    """Mean absolute difference of chunks (B, H, A) from others that may be longer, one a row."""
    return (actions - reference[:, : actions.shape[1]]).abs().mean(dim=(1, 2)).tolist()
