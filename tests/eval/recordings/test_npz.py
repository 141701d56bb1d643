"""A file of observations as recorded episodes; whatever is wrong with it is one line."""

import numpy as np
import pytest

from vivace.eval.recordings.npz import FileRecording
from vivace.policies.errors import BadSetting, ObservationMismatch

STATE = np.arange(12, dtype=np.float32).reshape(6, 2)
SHAPES = {"observation.state": (2,)}


@pytest.fixture
def write(tmp_path):
    def _write(**arrays) -> str:
        path = tmp_path / "obs.npz"
        np.savez(path, **{name.replace("__", "."): value for name, value in arrays.items()})
        return str(path)

    return _write


def test_rows_of_an_episode_follow_each_other(write):
    path = write(
        observation__state=STATE,
        episode=np.array([7, 7, 7, 2, 2, 2]),
        task=np.array(["a", "a", "a", "b", "b", "b"]),
        action=STATE[:, :1],
    )
    recording = FileRecording(path)
    assert (recording.episodes, recording.instructions, recording.control_hz) == ((2, 7), ("a", "b"), None)
    opened = recording.read([2], SHAPES, 2)
    moment = opened.moment(2, 0)
    assert moment["task"] == "b"
    np.testing.assert_array_equal(moment["observation.state"], STATE[[3, 3]])
    np.testing.assert_array_equal(opened.moment(2, 2)["observation.state"], STATE[[4, 5]])
    np.testing.assert_array_equal(opened.actions(2), STATE[3:, :1])
    assert opened.mark(2) != opened.mark(7)


def test_rows_may_hold_several_observations_and_be_episodes_of_their_own(write):
    recording = FileRecording(write(observation__state=STATE.reshape(3, 2, 2)))
    assert recording.episodes == (0, 1, 2)
    opened = recording.read([1], SHAPES, 2)
    np.testing.assert_array_equal(opened.moment(1, 0)["observation.state"], STATE[2:4])
    assert opened.actions(1) is None


@pytest.mark.parametrize(("arrays", "steps", "message"), [
    ({"observation__image": STATE}, 1, "has observation.image, but the policy needs 'observation.state'"),
    ({"observation__state": STATE.reshape(4, 3)}, 1, r"has shape \(3,\), the policy needs \(2,\)"),
    ({"observation__state": STATE.reshape(2, 3, 2)}, 2, r"has shape \(3, 2\), the policy needs \(2, 2\)"),
    ({"observation__state": STATE[:, 0]}, 1, r"has shape \(\), the policy needs \(2,\)"),
])  # fmt: skip
def test_what_does_not_fit_the_policy_is_one_line(write, arrays, steps, message):
    with pytest.raises(ObservationMismatch, match=message):
        FileRecording(write(**arrays)).read([0], SHAPES, steps)


def test_single_observations_of_no_episode_cannot_be_stacked(write):
    with pytest.raises(BadSetting, match="has one observation a row, the policy takes 2"):
        FileRecording(write(observation__state=STATE)).read([0], SHAPES, 2)


@pytest.mark.parametrize(("arrays", "message"), [
    ({}, "holds arrays of these lengths: nothing"),
    ({"observation__state": STATE, "action": STATE[:3]}, "lengths: observation.state 6, action 3"),
    ({"observation__state": STATE, "episode": STATE[:, 0]}, "'episode' of .* is float32; one whole number"),
    ({"observation__state": STATE, "task": np.zeros(6)}, "'task' of .* is float64; one text a row"),
    ({"observation__state": np.array([{}] * 2, object)}, "is damaged, holds objects, or is no .npz"),
    ({"observation__state": np.float32(1)}, "lengths: observation.state 0"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line(write, arrays, message):
    with pytest.raises(BadSetting, match=message):
        FileRecording(write(**arrays))


def test_damaged_files_are_one_line(write, tmp_path):
    with pytest.raises(BadSetting, match="there is no file of observations at"):
        FileRecording(str(tmp_path / "none.npz"))
    whole = (tmp_path / write(observation__state=STATE)).read_bytes()
    damaged = tmp_path / "damaged.npz"
    np.save(tmp_path / "one.npy", STATE)
    for content in (b"", b"text", whole[:-30], whole[:60] + b"\0" * 30 + whole[90:],
                    (tmp_path / "one.npy").read_bytes()):  # fmt: skip
        damaged.write_bytes(content)
        with pytest.raises(BadSetting, match="is damaged, holds objects, or is no .npz"):
            FileRecording(str(damaged))
