"""Pictures as ROS 2 drivers send them, as a policy sees them; needs no ROS.

A message is checked whole before anything of it is used, and before anything large is made of it.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from vivace.policies.errors import ObservationMismatch
from vivace.policies.plain_data import shown

FITS = ("scale", "stretch", "crop", "pad")
"""How a picture is made as large as the policy's: `scale` takes pictures of the same shape only, `crop` cuts
the middle out, `pad` adds black at both sides, `stretch` distorts."""
ORDERS = ("bgr", "rgb")
"""What the channels of 8UC3 and 8UC4 are. Those names say nothing of colours; drivers that send them pass
OpenCV's arrays on, which are blue, green, red."""
_PACKED: dict[str, tuple[int, ...]] = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
    "mono8": (0, 0, 0),
}
"""Encoding -> which of its channels are red, green, blue."""
_STRIDE = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""Encoding -> bytes of a pixel."""
_UNNAMED = {"8UC1": "mono8", "8UC3": "{}8", "8UC4": "{}a8"}
_YUV422 = {"uyvy": (1, 0, 2), "yuv422": (1, 0, 2), "yuyv": (0, 1, 3), "yuv422_yuy2": (0, 1, 3)}
"""Encoding -> where Y, U and V begin in the four bytes of two pixels."""
_YUV420 = {"nv12": (0, 1), "nv21": (1, 0)}
"""Encoding -> where U and V are in the pairs of the second plane."""
ENCODINGS = (*_PACKED, *_UNNAMED, *_YUV422, *_YUV420)
_BT601 = (1.1644, 0.0, 1.596, -222.92, 1.1644, -0.3918, -0.813, 135.58, 1.1644, 2.0172, 0.0, -276.84)
"""Y, U, V of video (BT.601, 16 to 235) -> red, green, blue, a row each with what is added at its end."""
_BLACK = 16
"""What is darker is black, as in OpenCV."""
_MOST_PIXELS = 1 << 25
"""More than an 8K camera has."""
_COMPRESSED = ("JPEG", "PNG")


def image(message: Any, shape: Sequence[int], *, fit: str = "scale", order: str = "bgr") -> np.ndarray:
    """Return a `sensor_msgs/Image` as HWC uint8 in [0, 255].

    Args:
        message: in one of `ENCODINGS`; rows may be padded.
        shape: what the policy sees (C, H, W), C = 1 or 3; a grey image fills all three channels.
        fit: of `FITS`.
        order: of `ORDERS`.

    Raises:
        ObservationMismatch: its encoding cannot be read, its numbers contradict each other, or it is too
            large, too small or of another shape.
    """
    encoding = str(message.encoding)
    if encoding in _UNNAMED:
        encoding = _UNNAMED[encoding].format(order)
    if encoding not in ENCODINGS:
        raise ObservationMismatch(
            f"encoding {shown(encoding)} cannot be read; needed: {', '.join(ENCODINGS)}; "
            f"set it in the camera driver{_hint(encoding)}"
        )
    if shape[0] == 1 and encoding != "mono8":
        raise ObservationMismatch(
            f"encoding {encoding!r} has colours, the policy's image has none; use mono8"
        )
    width, height, step = int(message.width), int(message.height), int(message.step)
    check_fit(width, height, shape, fit)
    data = np.frombuffer(message.data, np.uint8)
    row, rows = _row_bytes(encoding, width), height * 3 // 2 if encoding in _YUV420 else height
    is_odd = (encoding in _YUV422 and width % 2) or (encoding in _YUV420 and (width % 2 or height % 2))
    if is_odd or step < row or len(data) != step * rows:
        raise ObservationMismatch(
            f"{len(data)} bytes in rows of {step} are no {encoding} image of {width} x {height}; "
            "look at the camera driver"
        )
    lines = data.reshape(rows, step)[:, :row]
    if encoding in _PACKED:
        pixels = lines.reshape(height, width, -1)[:, :, list(_PACKED[encoding][: shape[0]])]
    else:
        pixels = _from_yuv(lines, encoding, width, height)
    return fitted(np.ascontiguousarray(pixels), shape, fit)


def compressed_image(message: Any, shape: Sequence[int], *, fit: str = "scale") -> np.ndarray:
    """Return a `sensor_msgs/CompressedImage` (JPEG or PNG, 8 bit) as HWC uint8 in [0, 255].

    What image_transport compresses decodes to RGB, whatever the encoding it came from.

    Args:
        message: the content decides, not what its format says.
        shape: what the policy sees (C, H, W), C = 1 or 3.
        fit: of `FITS`.

    Raises:
        ObservationMismatch: as for `image`, or it cannot be decoded.
    """
    pillow = _pillow()
    data = bytes(message.data)
    try:
        with pillow.open(BytesIO(data), formats=_COMPRESSED) as picture:
            width, height = picture.size
            check_fit(width, height, shape, fit)  # before it is decoded: a header may promise gigabytes
            picture.verify()  # a PNG has check sums, which decoding it does not look at
        with pillow.open(BytesIO(data), formats=_COMPRESSED) as picture:
            if picture.mode not in ("L", "RGB", "RGBA", "P"):
                raise ObservationMismatch(
                    f"a compressed image has mode {picture.mode}; 8-bit images are needed"
                )
            pixels = np.asarray(picture.convert("L" if shape[0] == 1 else "RGB"))
    except ObservationMismatch:
        raise
    except Exception as error:  # what a decoder raises at foreign bytes is not written down anywhere
        if type(error).__name__ == "UnidentifiedImageError":
            reason = f"of format {shown(str(message.format))} is neither JPEG nor PNG"
        else:
            reason = f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ObservationMismatch(f"a compressed image {reason}") from error
    return fitted(pixels.reshape(*pixels.shape[:2], shape[0]), shape, fit)


def check_fit(width: int, height: int, shape: Sequence[int], fit: str) -> None:
    """Raise `ObservationMismatch` if a picture of that size cannot become the policy's (C, H, W)."""
    wanted = f"the policy needs {shape[2]} x {shape[1]}"
    if width < 1 or height < 1 or width * height > _MOST_PIXELS:
        raise ObservationMismatch(f"an image is {width} x {height}, {wanted}; look at the camera driver")
    if fit != "scale":
        return
    if not is_same_shape(width, height, shape):
        raise ObservationMismatch(
            f"an image is {width} x {height}, {wanted}, of another shape; set camera.fit to what was done "
            "with the demonstrations' pictures: crop, pad or stretch"
        )
    if width < shape[2] or height < shape[1]:
        raise ObservationMismatch(
            f"an image is {width} x {height}, {wanted}; set a larger size in the camera driver, or camera.fit"
        )


def is_same_shape(width: int, height: int, shape: Sequence[int]) -> bool:
    """Whether a picture's sides are as those of the policy's, up to the rounding of a pixel."""
    return round(shape[2] * height / width) == shape[1] or round(shape[1] * width / height) == shape[2]


def fitted(pixels: np.ndarray, shape: Sequence[int], fit: str) -> np.ndarray:
    """Return pixels (H, W, C) as large as the policy's picture: Pillow, bilinear over the pixels covered."""
    height, width = pixels.shape[:2]
    wanted = (int(shape[2]), int(shape[1]))
    if (width, height) == wanted:
        return pixels
    pillow = _pillow()
    whole = pillow.fromarray(pixels[:, :, 0] if shape[0] == 1 else pixels)
    scales = wanted[0] / width, wanted[1] / height
    if fit == "crop":
        w, h = (max(1, round(side / max(scales))) for side in wanted)
        left, top = (width - w) // 2, (height - h) // 2
        made = whole.crop((left, top, left + w, top + h)).resize(wanted, pillow.Resampling.BILINEAR)
    elif fit == "pad":
        w, h = (max(1, round(side * min(scales))) for side in (width, height))
        made = pillow.new(whole.mode, wanted)
        inner = whole.resize((w, h), pillow.Resampling.BILINEAR)
        made.paste(inner, ((wanted[0] - w) // 2, (wanted[1] - h) // 2))
    else:
        made = whole.resize(wanted, pillow.Resampling.BILINEAR)
    return np.asarray(made).reshape(shape[1], shape[2], shape[0])


def _row_bytes(encoding: str, width: int) -> int:
    if encoding in _PACKED:
        return width * _STRIDE[encoding]
    return width * (2 if encoding in _YUV422 else 1)


def _from_yuv(lines: np.ndarray, encoding: str, width: int, height: int) -> np.ndarray:
    """Pixels (H, W, 3) of rows of bytes."""
    if encoding in _YUV422:
        y, u, v = _YUV422[encoding]
        light, blue, red = lines[:, y::2], lines[:, u::4], lines[:, v::4]
    else:
        u, v = _YUV420[encoding]
        pairs = np.repeat(lines[height:], 2, axis=0)
        light, blue, red = lines[:height], pairs[:, u::2], pairs[:, v::2]
    pillow = _pillow()
    planes = [np.maximum(light, _BLACK), np.repeat(blue, 2, axis=1), np.repeat(red, 2, axis=1)]
    made = pillow.fromarray(np.stack(planes, axis=2))  # its matrices are for RGB, whatever is inside
    return np.asarray(made.convert("RGB", _BT601))


def _hint(encoding: str) -> str:
    if encoding.startswith("bayer"):
        return ", or put image_proc's debayering between"
    if encoding in ("16UC1", "32FC1", "mono16"):
        return "; it looks like a depth or infrared picture, which these policies do not see"
    return ""


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ObservationMismatch(
            "compressed, resized and YUV images need the package pillow, which is not installed; "
            "pip install pillow"
        ) from error
    return Image
