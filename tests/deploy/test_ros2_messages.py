"""Messages become arrays, or are refused in one line; plain objects stand for messages."""

from io import BytesIO
from types import SimpleNamespace as Message

import numpy as np
import pytest

from vivace.deploy.ros2_messages import compressed_image, image, joints, stamp_s
from vivace.deploy.ros2_sensors import Sensor, Sensors
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


def state(names, position, velocity=()):
    return Message(name=list(names), position=list(position), velocity=list(velocity), effort=[])


ALPHA = np.full((2, 3, 1), 9, np.uint8)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[:, :, ::-1]),
        ("rgba8", np.concatenate([RGB, ALPHA], 2)),
        ("bgra8", np.concatenate([RGB[:, :, ::-1], ALPHA], 2)),
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
        (raw("16UC1", RGB), "encoding '16UC1' cannot be read; needed: rgb8, bgr8"),
        (raw("rgb8", RGB.reshape(3, 2, 3)), "an image is 2 x 3, the policy needs 3 x 2"),
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


def test_joints_come_in_the_policys_order():
    message = state(["c", "a", "b"], [3, 1, 2], [30, 10, 20])
    assert joints(message, ["a", "b"]).tolist() == [1, 2]
    found = joints(message, ["b", "c"], ["position", "velocity"])
    assert found.tolist() == [2, 3, 20, 30]
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (state("ab", [1, 2]), r"joints \['c'\] are missing among \['a', 'b'\]; set joint_names"),
        (state("", [1, 2]), "are missing among"),
        (state("abcc", [1, 2, 3, 4]), "joints come twice"),
        (state("abc", [1, 2]), "2 numbers in position for 3 joints"),
        (state("abc", [1, float("nan"), 3]), r"joints \['b'\] are NaN"),
        (state("abc", [1, 2, 1e60]), r"joints \['c'\] are NaN or infinite"),
        (state([f"j{i}" for i in range(20)], range(20)), "… 20 in all"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_joints_are_refused(message, reason):
    with pytest.raises(ObservationMismatch, match=reason):
        joints(message, ["a", "b", "c"])


def stamped(second, value=1.0):
    sec = int(second)
    stamp = Message(sec=sec, nanosec=round((second - sec) * 1e9))
    return Message(header=Message(stamp=stamp), value=value)


def read(message):
    if not np.isfinite(message.value):
        raise ObservationMismatch("NaN")
    return np.array([message.value])


def sensors(staleness_s=0.2):
    return Sensors({"a": Sensor("/a", read), "b": Sensor("/b", read)}, staleness_s)


def test_an_observation_is_as_old_as_its_oldest_part():
    seen = sensors()
    assert seen.why_not(10.0) == "waiting for a on /a"
    assert seen.take("a", stamped(10.0), 10.0) == ""
    assert seen.why_not(10.0) == "waiting for b on /b"
    seen.take("b", stamped(10.1, 2.0), 10.1)
    assert seen.why_not(10.2) == ""
    values, stamp = seen.newest()
    assert (values["a"].item(), values["b"].item(), stamp) == (1.0, 2.0, 10.0)
    assert "a on /a is 0.25 s old, the limit (staleness_s) is 0.20 s" in seen.why_not(10.25)
    seen.forget()
    assert seen.why_not(10.2) == "waiting for a on /a"


def test_a_refused_message_is_counted_and_the_good_one_before_it_ages():
    seen = sensors()
    for key in "ab":
        seen.take(key, stamped(1.0), 1.0)
    assert seen.take("a", stamped(1.1, float("nan")), 1.1) == "NaN"
    assert seen.take("a", stamped(1.15, float("inf")), 1.15) == "NaN"
    seen.take("b", stamped(1.3), 1.3)
    assert seen.why_not(1.3).startswith("a on /a is 0.30 s old")
    assert seen.news() == {"a": "2 refused on /a: NaN"}
    assert seen.news() == {}
    assert (seen.sensors["a"].taken, seen.sensors["a"].refused) == (1, 2)


def test_stamps_from_the_future_or_the_past_are_refused():
    seen = sensors()
    assert "lies 4.00 s in the future; synchronise the clocks" in seen.take("a", stamped(14.0), 10.0)
    seen.take("a", stamped(10.0), 10.0)
    assert "0.500 s before that of the message taken last" in seen.take("a", stamped(9.5), 10.1)
    assert seen.take("a", stamped(5.0), 5.0) == "", (
        "our clock went back, so the newest one is from the future"
    )


def test_without_a_stamp_the_arrival_counts():
    seen = sensors()
    assert seen.take("a", stamped(0.0), 7.0) == ""
    assert (seen.sensors["a"].stamp_s, seen.sensors["a"].unstamped) == (7.0, 1)
    assert stamp_s(Message(sec=3, nanosec=500_000_000)) == 3.5
