"""Arrays as they enter from a robot: taken as they are, or refused; never broadcast, cast or guessed.

Pictures are uint8 in [0, 255], height x width x channels: numbers in [0, 1] would be divided by 255 again.
All else is finite numbers, which become float32. Free of torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vivace.policies.errors import ObservationMismatch
from vivace.policies.spec import DELAY, IMAGE, PREVIOUS, PolicySpec

Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Name -> (shape, dtype)."""


def is_image(key: str) -> bool:
    """Whether an observation key is a camera's."""
    return key.startswith(IMAGE)


def observation_layout(spec: PolicySpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> shape (To, ...) and dtype of a policy's observations as a robot gives them, images HWC uint8."""
    n = spec.n_obs_steps
    return {
        key: ((n, *shape[1:], shape[0]), "uint8") if is_image(key) else ((n, *shape), "float32")
        for key, shape in spec.observation_shapes.items()
    }


def entered(name: str, value: Any, shape: tuple[int, ...], dtype: str, any_size: bool = False) -> np.ndarray:
    """Return an array of exactly this shape and dtype, uint8 or float32.

    Args:
        name: what it is called in messages.
        value: an array, or what numpy makes one of.
        shape: needed.
        dtype: needed; float32 is made of any real numbers.
        any_size: take pictures of another height and width, too.

    Raises:
        ObservationMismatch: it has another shape or kind, or a number is not finite as float32.
    """
    try:
        found = np.asarray(value)
    except ValueError as error:  # lists of unlike lengths
        raise ObservationMismatch(f"{name} holds no array ({error})") from error
    if dtype == "uint8" and found.dtype != np.uint8:
        raise ObservationMismatch(
            f"{name} is {found.dtype}; pictures are uint8 in [0, 255], height x width x 3"
        )
    if found.dtype.kind not in "fiu":
        raise ObservationMismatch(f"{name} is {found.dtype}; real numbers are needed")
    is_free = any_size and dtype == "uint8" and found.ndim == len(shape) and 0 not in found.shape
    wanted = (*shape[:-3], *found.shape[-3:-1], shape[-1]) if is_free else tuple(shape)
    if found.shape != wanted:
        raise ObservationMismatch(f"{name} has shape {found.shape}, needed is {tuple(shape)}")
    if dtype == "uint8":
        return found
    with np.errstate(over="ignore"):  # numbers too large for 32 bits become infinite
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise ObservationMismatch(f"{name} holds NaN or infinity; check the sensor before calling the policy")
    return found


def batch_layout(spec: PolicySpec, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> shape (rows, To, ...) and dtype of a batch of a policy's observations."""
    return {key: ((rows, *shape), dtype) for key, (shape, dtype) in observation_layout(spec).items()}


def enter_observations(
    values: Mapping[str, Any], layout: Layout, any_size: bool = False
) -> dict[str, np.ndarray]:
    """Return the observations that a policy reads; others are passed over.

    Args:
        values: key -> array.
        layout: what the policy reads.
        any_size: take pictures of another height and width, too.

    Raises:
        ObservationMismatch: one is missing, or does not enter (`entered`).
    """
    found = {}
    for key, (shape, dtype) in layout.items():
        try:
            value = values[key]  # pictures may be rendered when they are looked at
        except KeyError as error:
            raise ObservationMismatch(
                f"observation has keys {sorted(values)}, but the policy needs {key!r} of shape {shape}; "
                "map your names onto lerobot's keys"
            ) from error
        found[key] = entered(f"observation {key!r}", value, shape, dtype, any_size)
    return found


def enter_previous(values: Mapping[str, Any], spec: PolicySpec, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the chunks before mean (rows, n, A), NaN where nothing is known, and the ticks (rows,).

    Raises:
        ObservationMismatch: they have another shape or kind, or are infinite or negative.
    """
    actions = np.asarray(values[PREVIOUS])
    if actions.dtype.kind != "f" or actions.ndim != 3 or actions.shape[::2] != (rows, spec.action_dim):
        raise ObservationMismatch(
            f"{PREVIOUS!r} is {actions.dtype} of shape {actions.shape}; floats of shape "
            f"({rows}, n, {spec.action_dim}) are needed"
        )
    delay = np.asarray(values.get(DELAY, np.zeros(rows, np.int64)))
    if delay.dtype.kind not in "iu" or delay.shape != (rows,) or (delay < 0).any():
        raise ObservationMismatch(
            f"{DELAY!r} is {delay.dtype} of shape {delay.shape}; whole numbers of ticks, 0 or more, of shape "
            f"({rows},) are needed"
        )
    with np.errstate(over="ignore"):
        found = actions.astype(np.float32)
    if np.isinf(found).any():
        raise ObservationMismatch(f"{PREVIOUS!r} holds infinity; finite actions are needed, or NaN")
    return found, delay.astype(np.int64)
