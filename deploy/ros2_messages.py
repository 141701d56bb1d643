"""ROS 2 messages as arrays; needs no ROS: messages are read by the names of their fields.

Every message is checked whole before anything of it is used; one that does not fit raises
`ObservationMismatch` with one line that says why.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from vivace.policies.errors import ObservationMismatch

_CHANNELS: dict[str, tuple[int, ...]] = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
    "mono8": (0, 0, 0),
}
"""Encoding -> which of its channels are red, green, blue."""
_STRIDE = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""Encoding -> bytes of a pixel."""
_COMPRESSED = ("JPEG", "PNG")
FIELDS = ("position", "velocity", "effort")
"""What a JointState says of each joint."""


def stamp_s(stamp: Any) -> float:
    """Return a `builtin_interfaces/Time` in seconds."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def image(message: Any, shape: Sequence[int]) -> np.ndarray:
    """Return a `sensor_msgs/Image` as HWC uint8 in [0, 255].

    Args:
        message: in encoding rgb8, bgr8, rgba8, bgra8 or mono8; rows may be padded.
        shape: what the policy sees (C, H, W), C = 1 or 3; a mono8 image fills all three channels.
    """
    encoding = str(message.encoding)
    if encoding not in _CHANNELS:
        raise ObservationMismatch(
            f"encoding {encoding!r} cannot be read; needed: {', '.join(_CHANNELS)}; "
            "set it in the camera driver"
        )
    if shape[0] == 1 and encoding != "mono8":
        raise ObservationMismatch(
            f"encoding {encoding!r} has colours, the policy's image has none; use mono8"
        )
    _check_size(int(message.width), int(message.height), shape)
    width, height, step = int(message.width), int(message.height), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if step < width * _STRIDE[encoding] or len(data) != step * height:
        raise ObservationMismatch(
            f"{len(data)} bytes in rows of {step} are no {encoding} image of {width} x {height}; "
            "look at the camera driver"
        )
    pixels = data.reshape(height, step)[:, : width * _STRIDE[encoding]].reshape(height, width, -1)
    return np.ascontiguousarray(pixels[:, :, list(_CHANNELS[encoding][: shape[0]])])


def compressed_image(message: Any, shape: Sequence[int]) -> np.ndarray:
    """Return a `sensor_msgs/CompressedImage` (JPEG or PNG, 8 bit) as HWC uint8 in [0, 255].

    What image_transport compresses decodes to RGB, whatever the encoding it came from.

    Args:
        message: the content decides, not what its format says.
        shape: what the policy sees (C, H, W), C = 1 or 3.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ObservationMismatch(
            "compressed images need the package pillow, which is not installed; pip install pillow"
        ) from error
    try:
        with Image.open(BytesIO(bytes(message.data)), formats=_COMPRESSED) as picture:
            _check_size(*picture.size, shape)  # before it is decoded: a header may promise gigabytes
            if picture.mode not in ("L", "RGB", "RGBA", "P"):
                raise ObservationMismatch(
                    f"a compressed image has mode {picture.mode}; 8-bit images are needed"
                )
            pixels = np.asarray(picture.convert("L" if shape[0] == 1 else "RGB"))
    except UnidentifiedImageError as error:
        raise ObservationMismatch(
            f"a compressed image of format {str(message.format)!r} is neither JPEG nor PNG"
        ) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all three
        raise ObservationMismatch(f"a compressed image cannot be decoded ({error})") from error
    return pixels.reshape(shape[1], shape[2], shape[0])


def joints(message: Any, names: Sequence[str], fields: Sequence[str] = ("position",)) -> np.ndarray:
    """Return a `sensor_msgs/JointState` as a vector, float32, in the order of the policy's joints.

    Args:
        message: its joints may come in any order, and be more than the policy's.
        names: the policy's joints (J).
        fields: of `FIELDS`, one after the other.

    Returns:
        (len(fields) * J,), e.g. all positions, then all velocities.
    """
    found = [str(name) for name in message.name]
    if len(set(found)) != len(found):
        raise ObservationMismatch(f"joints come twice in {_some(found)}; every joint needs one name")
    place = {name: index for index, name in enumerate(found)}
    missing = [name for name in names if name not in place]
    if missing:
        raise ObservationMismatch(
            f"joints {_some(missing)} are missing among {_some(found)}; set joint_names to the robot's"
        )
    order = [place[name] for name in names]
    parts = []
    for field in fields:
        values = np.asarray(getattr(message, field), np.float64)
        if len(values) != len(found):
            raise ObservationMismatch(
                f"{len(values)} numbers in {field} for {len(found)} joints; the driver must give one each"
            )
        parts.append(values[order])
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        vector = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(vector).all():
        bad = [names[i % len(names)] for i in np.flatnonzero(~np.isfinite(vector))]
        raise ObservationMismatch(f"joints {_some(bad)} are NaN or infinite; look at the sensor")
    return vector


def _check_size(width: int, height: int, shape: Sequence[int]) -> None:
    if (height, width) != tuple(shape[1:]):
        raise ObservationMismatch(
            f"an image is {width} x {height}, the policy needs {shape[2]} x {shape[1]}; "
            "set it in the camera driver, or put a resizing node between"
        )


def _some(names: Sequence[str], most: int = 6) -> str:
    """Names as a list that stays one line."""
    listed = ", ".join(repr(name) for name in names[:most])
    return f"[{listed}{f', … {len(names)} in all' if len(names) > most else ''}]"
