"""Messages of numbers become arrays, or are refused in one line; plain objects stand for messages."""

from types import SimpleNamespace as Message

import numpy as np
import pytest

from vivace.deploy.ros2.messages.sensors import WHOLE, Sensor, Sensors
from vivace.deploy.ros2.messages.vectors import array, joints, pose, stamp_s
from vivace.policies.errors import ObservationMismatch


def state(names, position, velocity=()):
    return Message(name=list(names), position=list(position), velocity=list(velocity), effort=[])


def test_joints_come_in_the_policys_order():
    message = state(["c", "a", "b"], [3, 1, 2], [30, 10, 20])
    assert {name: x.tolist() for name, x in joints(message, ["a", "b"]).items()} == {"a": [1], "b": [2]}
    found = joints(message, ["b", "c"], ["position", "velocity"])
    assert {name: x.tolist() for name, x in found.items()} == {"b": [2, 20], "c": [3, 30]}
    assert found["b"].dtype == np.float32


def test_a_message_may_hold_some_of_the_joints_or_others():
    assert list(joints(state("xb", [1, 2]), ["a", "b"])) == ["b"]
    assert joints(state("xy", [float("nan"), 2]), ["a", "b"]) == {}
    assert joints(state("", []), ["a", "b"]) == {}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (state("abcc", [1, 2, 3, 4]), "joints come twice"),
        (state("abc", [1, 2]), "2 numbers in position for 3 joints"),
        (state("abc", [1, float("nan"), 3]), r"joints \['b'\] are NaN"),
        (state("abc", [1, 2, 1e60]), r"joints \['c'\] are NaN or infinite"),
        (state(["a"] * 20, range(20)), "… 20 in all"),
        (state(["a", "b" * 10**6], [float("inf")]), "1 numbers in position for 2 joints"),
        (state("abc", [[1, 2, 3]]), "3 numbers in position for 3 joints"),
        (state(map(str, range(10_000)), range(10_000)), "10000 joints in a message; at most 4096"),
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
    return {WHOLE: np.array([message.value])}


class Seen(Sensors):
    """Sensors that read all messages alike."""

    def take(self, key, message, now):
        return super().take(key, message, now, read)


def sensors(oldest_s=0.2):
    return Seen({"a": Sensor("/a"), "b": Sensor("/b")}, oldest_s)


def test_an_observation_is_as_old_as_its_oldest_part():
    seen = sensors()
    assert seen.why_not(10.0) == "waiting for a on /a"
    assert seen.take("a", stamped(10.0), 10.0) == ""
    assert seen.why_not(10.0) == "waiting for b on /b"
    seen.take("b", stamped(10.1, 2.0), 10.1)
    assert seen.why_not(10.2) == ""
    values, stamp = seen.newest()
    assert (values["a"].item(), values["b"].item(), stamp) == (1.0, 2.0, 10.0)
    assert "a on /a is 0.25 s old, the limit (watchdog.observation_age_s) is 0.20 s" in seen.why_not(10.25)
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


def merged(*messages, now=10.0, oldest_s=0.2):
    """Two joints of two drivers."""
    seen = Sensors(
        {"s": Sensor("/j", ("a", "b"), lambda parts: np.concatenate([parts["a"], parts["b"]]))}, oldest_s
    )
    for second, message in messages:
        message.header = stamped(second).header
        seen.take("s", message, now, lambda m: joints(m, ["a", "b"]))
    return seen


def test_joints_of_several_publishers_are_merged_by_name():
    seen = merged((9.9, state("xa", [0, 1])), (9.95, state("b", [2])), (9.97, state("yz", [5, 6])))
    values, stamp = seen.newest()
    assert (values["s"].tolist(), stamp) == ([1, 2], 9.9), "as old as its oldest joint"
    assert (seen.sensors["s"].taken, seen.sensors["s"].foreign, seen.sensors["s"].refused) == (2, 1, 0)
    assert seen.why_not(10.0) == ""
    assert "s on /j is 0.25 s old (a), the limit" in seen.why_not(10.15)


def test_a_joint_that_nobody_sends_is_named():
    assert merged((10, state("xa", [0, 1]))).why_not(10) == "waiting for s on /j, ['b'] of it"
    assert (
        merged((10, state("xy", [0, 1]))).why_not(10)
        == "waiting for s on /j; 1 messages were of other joints"
    )


def test_the_stamps_of_one_driver_do_not_outdate_anothers():
    seen = merged((10.0, state("a", [1])), (9.9, state("b", [2])), (9.95, state("a", [7])))
    assert seen.sensors["s"].value.tolist() == [1, 2]
    assert "0.050 s before that of the message taken last" in seen.sensors["s"].reason


def test_whatever_reading_raises_is_a_refusal_in_one_short_line():
    def fail(message):
        raise ZeroDivisionError("a\nb" * 1000)

    seen = Sensors({"a": Sensor("/a")}, 0.2)
    reason = seen.take("a", stamped(1.0), 1.0, fail)
    assert reason.startswith("it cannot be read (ZeroDivisionError: a b")
    assert len(reason) <= 300
    assert seen.take("a", Message(header=Message()), 1.0, read).startswith(
        "it cannot be read (AttributeError"
    )
    assert (seen.sensors["a"].refused, seen.sensors["a"].value) == (2, None)


@pytest.mark.parametrize("stamp", [{"sec": 1, "nanosec": 10**9}, {"sec": -5, "nanosec": 0}])
def test_a_stamp_that_is_no_time_is_refused(stamp):
    seen = sensors()
    assert "is no time" in seen.take("a", Message(header=Message(stamp=Message(**stamp)), value=1.0), 10.0)


def posed(position=(1, 2, 3), turned=(0, 0, 0, 1), frame="base", *, is_transform=False):
    at = Message(**dict(zip("xyz", position, strict=True)))
    turn = Message(**dict(zip("xyzw", turned, strict=True)))
    header = Message(frame_id=frame, stamp=Message(sec=1, nanosec=0))
    if is_transform:
        return Message(header=header, transform=Message(translation=at, rotation=turn))
    return Message(header=header, pose=Message(position=at, orientation=turn))


@pytest.mark.parametrize("is_transform", [False, True])
def test_a_pose_is_seven_numbers(is_transform):
    message = posed(turned=(0.6, 0, 0, 0.8), is_transform=is_transform)
    found = pose(message, "base", needs_rotation=True)
    assert found.tolist() == pytest.approx([1, 2, 3, 0.6, 0, 0, 0.8])
    assert pose(posed(turned=(0, 0, 0, 0)), "base", needs_rotation=False).tolist() == [1, 2, 3, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (posed(frame="tool"), "a pose is in frame 'tool', pose.frame says 'base'; set it"),
        (posed(turned=(0, 0, 0, 0)), "a pose's quaternion has length 0; needed: 1"),
        (posed(turned=(0.5, 0, 0, 1)), "has length 1.12"),
        (posed((1, float("nan"), 3)), "a pose is NaN or infinite"),
        (posed((1, 1e300, 3)), "a pose is NaN or infinite"),
    ],
)
def test_a_wrong_pose_is_refused(message, reason):
    with pytest.raises(ObservationMismatch, match=reason):
        pose(message, "base", needs_rotation=True)


@pytest.mark.filterwarnings("error")
def test_an_array_has_the_policys_size():
    assert array(Message(data=[1, 2]), 2).tolist() == [1, 2]
    for data, reason in (([1], "1 numbers in an array; the policy needs 2"), ([1, 1e60], "NaN or infinity")):
        with pytest.raises(ObservationMismatch, match=reason):
            array(Message(data=data), 2)


def test_without_a_header_the_arrival_counts():
    seen = Sensors({"a": Sensor("/a")}, 0.2)
    seen.take("a", Message(data=[1.0]), 5.0, lambda m: {WHOLE: array(m, 1)})
    assert (seen.sensors["a"].stamp_s, seen.sensors["a"].unstamped) == (5.0, 1)
