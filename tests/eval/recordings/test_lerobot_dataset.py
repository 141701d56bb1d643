"""A LeRobotDataset as recorded episodes: what comes out is what was recorded, or one line."""

import json
import shutil

import numpy as np
import pytest
from strangers_robot import CAMERAS, FPS, JOINTS, TASKS, frame, record

from vivace.eval.recordings.lerobot_dataset import DatasetRecording
from vivace.policies.errors import BadSetting, ObservationMismatch

SHAPES = {"observation.state": (7,)} | {f"observation.images.{n}": (3, *s) for n, s in CAMERAS.items()}


def test_what_is_known_of_it(recordings):
    found = DatasetRecording(str(recordings))
    assert (found.control_hz, found.action_names, found.episodes) == (FPS, JOINTS, (0, 1, 2, 3))
    assert found.names_in_training == JOINTS
    assert set(found.instructions) == set(TASKS)


@pytest.mark.parametrize(("index", "seen"), [(0, [0, 0]), (1, [0, 1]), (11, [10, 11])])
def test_a_moment_is_what_was_recorded_with_the_one_before_it(recordings, index, seen):
    episodes = DatasetRecording(str(recordings)).read([3, 1], SHAPES, 2)
    moment = episodes.moment(3, index)
    assert moment.pop("task") == TASKS[1]
    for key, found in moment.items():
        wanted = np.stack([frame(3, i)[key] for i in seen])
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    assert episodes.length(3) == 12
    np.testing.assert_array_equal(episodes.actions(1), [frame(1, i)["action"] for i in range(12)])


def test_one_observation_has_an_axis_of_time_too(recordings):
    moment = DatasetRecording(str(recordings)).read([2], SHAPES, 1).moment(2, 5)
    np.testing.assert_array_equal(moment["observation.state"][0], frame(2, 5)["observation.state"])
    assert moment["observation.images.top"].shape == (1, 72, 96, 3)


def test_videos_are_pictures_too(tmp_path):
    folder = record(tmp_path / "cups", episodes=2, frames=4, videos=True)
    pictures = DatasetRecording(str(folder)).read([1], SHAPES, 2).moment(1, 3)["observation.images.wrist"]
    assert (pictures.shape, pictures.dtype) == ((2, 64, 80, 3), np.uint8)
    wanted = np.stack([frame(1, i)["observation.images.wrist"] for i in (2, 3)])
    mean_error = np.abs(pictures.mean(-1) - wanted.mean(-1)).mean()
    assert mean_error < np.abs(wanted.mean(-1) - wanted.mean()).mean(), "nearer than a grey picture"


def test_an_episode_has_the_same_mark_wherever_it_is(recordings, tmp_path):
    shutil.copytree(recordings, tmp_path / "copy")
    here, there = (
        DatasetRecording(str(path)).read([0, 1, 2, 3], SHAPES, 1) for path in (recordings, tmp_path / "copy")
    )
    marks = [here.mark(i) for i in range(4)]
    assert marks == [there.mark(i) for i in range(4)]
    assert len(set(marks)) == 4


@pytest.mark.parametrize(("shapes", "message"), [
    ({"observation.images.front": (3, 8, 8)},
     r"has observation.images.top, .*, but the policy needs 'observation.images.front'; .* --rename_map="),
    ({"observation.state": (6,)}, r"'observation.state' of .* has shape \(7,\), the policy needs \(6,\)"),
])  # fmt: skip
def test_what_does_not_fit_the_policy_is_one_line(recordings, shapes, message):
    with pytest.raises(ObservationMismatch, match=message):
        DatasetRecording(str(recordings)).read([0], shapes, 1)


def test_a_state_is_no_camera(recordings, tmp_path):
    shutil.copytree(recordings, tmp_path / "cups")
    info = tmp_path / "cups/meta/info.json"
    info.write_text(info.read_text().replace("observation.state", "observation.image"))
    with pytest.raises(BadSetting, match="'observation.image' of .* is no camera"):
        DatasetRecording(str(tmp_path / "cups")).read([0], {"observation.image": (3, 8, 8)}, 1)


def test_what_is_no_dataset_is_one_line(recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadSetting, match="there is no dataset folder at nowhere, and on the Hub a name is"):
        DatasetRecording("nowhere")
    with pytest.raises(
        BadSetting, match="somebody/cups is no folder here, and could not be had from the Hub"
    ):
        DatasetRecording("somebody/cups")
    with pytest.raises(BadSetting, match="has no meta/info.json; give the folder of a LeRobotDataset"):
        DatasetRecording(str(tmp_path))
    copy = tmp_path / "cups"
    shutil.copytree(recordings, copy)
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(BadSetting, match="is damaged or of another format"):
        DatasetRecording(str(copy))
    (copy / "meta/info.json").write_text(json.dumps(info))
    next(copy.glob("data/*/*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(BadSetting, match="is damaged or of another format"):
        DatasetRecording(str(copy)).read([0], SHAPES, 1)
