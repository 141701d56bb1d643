"""Pictures become what a policy sees, or are refused in one line; plain objects stand for messages."""

from io import BytesIO
from types import SimpleNamespace as Message

import cv2
import numpy as np
import pytest
from ros2_mutations import Mutator

from vivace.deploy.ros2.messages.images import compressed_image, image, is_same_shape
from vivace.policies.errors import ObservationMismatch

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
SHAPE = (3, 2, 3)


def raw(encoding, pixels, pad=0):
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, pad)))
    return Message(encoding=encoding, width=width, height=height, step=rows.shape[1], data=rows.tobytes())


def compressed(pixels, kind="png"):
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return Message(format=f"rgb8; {kind} compressed bgr8", data=stream.getvalue())


ALPHA = np.full((2, 3, 1), 9, np.uint8)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[:, :, ::-1]),
        ("rgba8", np.concatenate([RGB, ALPHA], 2)),
        ("bgra8", np.concatenate([RGB[:, :, ::-1], ALPHA], 2)),
        ("8UC3", RGB[:, :, ::-1]),
        ("8UC4", np.concatenate([RGB[:, :, ::-1], ALPHA], 2)),
    ],
)
@pytest.mark.parametrize("pad", [0, 5])
def test_every_encoding_becomes_rgb(encoding, pixels, pad):
    found = image(raw(encoding, pixels, pad), SHAPE)
    assert found.dtype == np.uint8
    assert np.array_equal(found, RGB)
    assert found.flags.c_contiguous


def test_a_grey_image_fills_all_channels_or_the_only_one():
    grey = RGB[:, :, :1]
    assert np.array_equal(image(raw("mono8", grey), SHAPE), np.repeat(grey, 3, 2))
    assert np.array_equal(image(raw("mono8", grey), (1, 2, 3)), grey)
    assert np.array_equal(compressed_image(compressed(grey[:, :, 0]), (1, 2, 3)), grey)


def test_compressed_images_decode_to_rgb():
    assert np.array_equal(compressed_image(compressed(RGB), SHAPE), RGB)
    smooth = np.full((64, 48, 3), (200, 30, 90), np.uint8)
    found = compressed_image(compressed(smooth, "jpeg"), (3, 64, 48)).astype(int)
    assert np.abs(found - smooth).max() <= 4


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (raw("16UC1", RGB), "encoding '16UC1' cannot be read; needed: rgb8, bgr8.*; it looks like a depth"),
        (raw("rgb8", RGB.reshape(3, 2, 3)), "an image is 2 x 3, the policy needs 3 x 2, of another shape"),
        (
            Message(encoding="rgb8", width=3, height=0, step=9, data=b""),
            "an image is 3 x 0, the policy needs",
        ),
        (Message(**{**vars(raw("rgb8", RGB)), "width": 2**16, "height": 2**16}), "look at the camera driver"),
        (raw("bayer_rggb8", RGB), "image_proc's debayering"),
        (raw("x" * 10**6, RGB), "^encoding 'x{59}…' cannot be read"),
        (raw("{0.__class__}", RGB), "encoding '{0.__class__}' cannot be read"),
        (raw("uyvy", np.zeros((2, 3, 2), np.uint8)), "are no uyvy image of 3 x 2"),
        (Message(encoding="nv12", width=3, height=2, step=3, data=bytes(9)), "are no nv12 image of 3 x 2"),
        (Message(**{**vars(raw("rgb8", RGB)), "data": b"123"}), "3 bytes in rows of 9 are no rgb8 image"),
        (Message(**{**vars(raw("rgb8", RGB)), "step": 2, "data": b"1234"}), "in rows of 2 are no rgb8"),
    ],
)
def test_a_wrong_image_is_refused(message, reason):
    with pytest.raises(ObservationMismatch, match=reason):
        image(message, SHAPE)


def test_a_coloured_image_is_refused_by_a_policy_without_colours():
    with pytest.raises(ObservationMismatch, match="'rgb8' has colours, the policy's image has none"):
        image(raw("rgb8", RGB), (1, 2, 3))


def test_a_wrong_compressed_image_is_refused():
    whole = compressed(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    with pytest.raises(ObservationMismatch, match="'h264' is neither JPEG nor PNG"):
        compressed_image(Message(format="h264", data=b"no image"), SHAPE)
    with pytest.raises(ObservationMismatch, match="cannot be decoded"):
        compressed_image(Message(format="png", data=whole.data[:-900]), (3, 20, 30))
    with pytest.raises(ObservationMismatch, match="30 x 20, the policy needs 8 x 9"):
        compressed_image(whole, (3, 9, 8))
    with pytest.raises(ObservationMismatch, match="mode I;16; 8-bit images are needed"):
        compressed_image(compressed(np.zeros((2, 3), np.uint16)), SHAPE)


def test_compressed_images_without_pillow_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ObservationMismatch, match="pip install pillow"):
        compressed_image(Message(format="png", data=b""), SHAPE)


def test_unnamed_channels_are_what_the_parameter_says():
    assert np.array_equal(image(raw("8UC3", RGB), SHAPE, order="rgb"), RGB)
    grey = RGB[:, :, :1]
    assert np.array_equal(image(raw("8UC1", grey), (1, 2, 3)), grey)


SMOOTH = cv2.resize(np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8), (80, 60))
"""What a camera might see (60, 80, 3)."""
YUV422 = {
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
}


@pytest.mark.parametrize("encoding", YUV422)
def test_the_usual_encodings_of_usb_cameras_become_rgb_as_in_opencv(encoding):
    packed = np.random.default_rng(0).integers(0, 256, (6, 8, 2), np.uint8)
    found = image(raw(encoding, packed, pad=4), (3, 6, 8)).astype(int)
    assert np.abs(found - cv2.cvtColor(packed, YUV422[encoding])).max() <= 1


@pytest.mark.parametrize(
    ("encoding", "code"), [("nv12", cv2.COLOR_YUV2RGB_NV12), ("nv21", cv2.COLOR_YUV2RGB_NV21)]
)
def test_planes_of_colour_become_rgb_as_in_opencv(encoding, code):
    planes = np.random.default_rng(1).integers(0, 256, (9, 8), np.uint8)
    message = Message(encoding=encoding, width=8, height=6, step=8, data=planes.tobytes())
    assert np.abs(image(message, (3, 6, 8)).astype(int) - cv2.cvtColor(planes, code)).max() <= 1


def both(pixels, shape, **options):
    """A picture sent as it is and compressed: the same is seen."""
    found = image(raw("rgb8", pixels), shape, **options)
    assert np.array_equal(found, compressed_image(compressed(pixels), shape, **options))
    return found


def test_a_larger_picture_of_the_same_shape_is_made_smaller():
    found = both(SMOOTH, (3, 30, 40)).astype(int)
    wanted = cv2.resize(SMOOTH, (40, 30), interpolation=cv2.INTER_AREA)
    assert np.abs(found - wanted).mean() <= 2
    grey = SMOOTH[:, :, :1]
    assert image(raw("mono8", grey), (1, 30, 40)).shape == (30, 40, 1)


def test_a_picture_of_another_shape_or_smaller_needs_to_be_told_how():
    for convert, message in ((image, raw("rgb8", SMOOTH)), (compressed_image, compressed(SMOOTH))):
        with pytest.raises(
            ObservationMismatch, match="80 x 60, the policy needs 40 x 40, of another shape; set"
        ):
            convert(message, (3, 40, 40))
        with pytest.raises(
            ObservationMismatch, match="80 x 60, the policy needs 160 x 120; set a larger size"
        ):
            convert(message, (3, 120, 160))
    assert both(SMOOTH, (3, 120, 160), fit="stretch").shape == (120, 160, 3)


def test_a_picture_is_cropped_padded_or_stretched():
    red, blue = (255, 0, 0), (0, 0, 255)
    halves = np.zeros((40, 80, 3), np.uint8)
    halves[:, :40], halves[:, 40:] = red, blue
    halves[:, :20] = halves[:, 60:] = (0, 255, 0)
    cropped = both(halves, (3, 20, 20), fit="crop")
    assert not cropped[:, :, 1].any(), "the middle 40 x 40"
    assert (cropped[:, :9] == red).all()
    assert (cropped[:, 11:] == blue).all()
    padded = both(halves, (3, 20, 20), fit="pad")
    assert not padded[:5].any()
    assert not padded[15:].any()
    assert (padded[5:15, :4] == (0, 255, 0)).all()
    stretched = both(halves, (3, 20, 20), fit="stretch")
    assert (stretched[:, 6:9] == red).all()
    assert stretched.any(axis=2).all()


@pytest.mark.parametrize(
    ("width", "height", "shape", "is_same"),
    [
        (640, 480, (3, 240, 320), True),
        (640, 480, (3, 170, 227), True),
        (640, 480, (3, 240, 240), False),
        (1280, 720, (3, 240, 320), False),
        (1, 9000, (3, 2, 2), False),
    ],
)
def test_shapes_are_the_same_up_to_a_pixel(width, height, shape, is_same):
    assert is_same_shape(width, height, shape) is is_same


def test_a_text_bomb_is_refused():
    bomb = Message(format="png", data=Mutator(0).text_bomb())
    assert len(bomb.data) < 100_000
    with pytest.raises(
        ObservationMismatch, match="a compressed image cannot be decoded .ValueError: Decompressed"
    ):
        compressed_image(bomb, (3, 2, 2))


def test_a_png_that_was_damaged_on_its_way_is_refused():
    whole = compressed(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).data
    damaged = bytearray(whole)
    damaged[-300] ^= 1
    with pytest.raises(ObservationMismatch, match="cannot be decoded .SyntaxError: broken PNG"):
        compressed_image(Message(format="png", data=bytes(damaged)), (3, 20, 30))
