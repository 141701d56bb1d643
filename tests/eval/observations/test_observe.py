"""Where observations come from: recorded episodes, a file, shapes; how they are split; what is said of it."""

import json
import shutil

import numpy as np
import pytest
from strangers_robot import FPS, JOINTS, TASKS, frame

from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.observations.recorded import recorded_data
from vivace.eval.observations.shapes import made_up
from vivace.eval.options import AccelOptions, CommonOptions, DataOptions, PolicyOptions
from vivace.eval.recordings.lerobot_dataset import DatasetRecording
from vivace.eval.subject import INSTRUCTION, load
from vivace.policies.errors import ObservationMismatch
from vivace.policies.load import load_policy
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import PREVIOUS, ActionKind

FEW = AccelOptions(episodes=3, samples=5, judged_episodes=12, judged_samples=4)


def command(policy, **data) -> CommonOptions:
    return CommonOptions(policy=PolicyOptions(path=str(policy)), data=DataOptions(**data), accel=FEW)


def test_a_recording_at_another_rate_than_the_policys_is_told(strangers_policy, recordings, tmp_path, capsys):
    policy = shutil.copytree(strangers_policy, tmp_path / "policy")
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"control_hz": 4 * FPS}))
    load(command(policy, repo=str(recordings)))
    told = " ".join(capsys.readouterr().err.split())
    assert f"the recording is of {FPS} Hz, the policy of {4 * FPS} Hz: the past that it is shown lies" in told


def test_frames_of_a_dataset(strangers_policy, recordings):
    asked = command(strangers_policy, repo=str(recordings))
    loaded = load(asked)
    spec = loaded.staged.spec
    assert (asked.env.control_hz, spec.control_hz) == (FPS, FPS)
    assert spec.action_kinds == (ActionKind.ABSOLUTE,) * len(JOINTS), "their names end in .pos"
    fitted, judged = observe(asked, loaded), observe(asked, loaded, seed=JUDGEMENT_SEED)
    assert fitted.source == f"5 frames of 2 episodes of {recordings}", "half of the four there are"
    assert judged.source == f"4 frames of 2 episodes of {recordings}"
    assert not fitted.seeds & judged.seeds
    assert len(set(fitted.noise_keys)) == 5
    assert fitted.raw["observation.images.top"].shape == (5, 2, 72, 96, 3)
    assert set(fitted.raw["task"]) <= set(TASKS)
    np.testing.assert_array_equal(fitted.raw[PREVIOUS], np.nan)
    again = observe(asked, loaded)
    assert again.noise_keys == fitted.noise_keys
    steps = [np.diff([frame(episode, i)["action"] for i in range(12)], axis=0) for episode in range(4)]
    largest = np.abs(np.concatenate(steps)).max(axis=0)
    assert (fitted.largest_step <= largest).all()
    assert (np.maximum(fitted.largest_step, judged.largest_step) == largest).all()


def test_what_is_said_wins_over_what_was_recorded(strangers_policy, recordings):
    asked = command(strangers_policy, repo=str(recordings))
    asked.env.instruction, asked.env.control_hz = "wave", 5.0
    loaded = load(asked, ["velocity"])
    assert loaded.staged.spec.action_kinds == (ActionKind.VELOCITY,) * len(JOINTS)
    assert asked.env.control_hz == 5.0
    assert set(observe(asked, loaded).raw["task"]) == {"wave"}


def test_rows_of_a_file(strangers_policy, recordings, tmp_path):
    frames = [frame(episode, i) for episode in range(3) for i in range(4)]
    arrays = {key: np.stack([one[key] for one in frames]) for key in frames[0]}
    np.savez(tmp_path / "obs.npz", **arrays, episode=np.repeat([0, 1, 2], 4))
    asked = command(strangers_policy, file=str(tmp_path / "obs.npz"))
    loaded = load(asked)
    assert loaded.staged.spec.action_kinds == (ActionKind.UNKNOWN,) * len(JOINTS)
    data = observe(asked, loaded, seed=JUDGEMENT_SEED)
    assert data.source == f"4 rows of 2 episodes of {tmp_path / 'obs.npz'}"
    assert data.largest_step is not None


def test_shapes_where_nothing_is_given(strangers_policy):
    asked = command(strangers_policy)
    loaded = load(asked)
    assert asked.env.control_hz is None
    fitted, judged = observe(asked, loaded), observe(asked, loaded, seed=JUDGEMENT_SEED)
    assert fitted.source == "from shapes (5 made up, none seen)"
    assert (len(fitted.noise_keys), len(judged.noise_keys)) == (5, 4)
    assert not fitted.seeds & judged.seeds
    assert fitted.largest_step is None
    assert fitted.raw["observation.images.wrist"].std() > 50
    assert set(fitted.raw["task"]) == {INSTRUCTION}
    assert float(fitted.batch["observation.state"].abs().max()) <= 1.0, "within the range of its statistics"
    assert float(fitted.batch["observation.state"].std()) > 0.3


def test_numbers_without_statistics_are_standard_normal(tiny_loaded):
    tiny_loaded.preprocess.steps = [
        step for step in tiny_loaded.preprocess.steps if not hasattr(step, "_tensor_stats")
    ]
    data = made_up(Session(tiny_loaded), 200, seed=3)
    assert 0.9 < data.raw["observation.state"].std() < 1.1


def test_data_of_another_robot_is_refused(tiny_loaded, recordings):
    recording = DatasetRecording(str(recordings))
    with pytest.raises(ObservationMismatch, match=r"'observation.state' of .* has shape \(7,\), .* \(5,\)"):
        recorded_data(Session(tiny_loaded), recording, [0], 2, seed=0)


def test_chunks_that_continue_are_told_what_the_one_before_means(strangers_policy, recordings):
    """Not what was recorded: that knows what the policy has to guess."""
    loaded = load_policy(strangers_policy)
    session, plain = Session(loaded, chunking=RealTimeChunking()), Session(loaded)
    data = recorded_data(session, DatasetRecording(str(recordings)), [0, 1], 6, seed=0)
    n = loaded.staged.spec.n_action_steps
    late = [row for row, (_, index) in enumerate(data.noise_keys) if index >= n]
    assert 0 < len(late) < 6
    assert np.isnan(data.raw[PREVIOUS][[row for row in range(6) if row not in late]]).all()
    opened = DatasetRecording(str(recordings)).read([0, 1], loaded.staged.spec.observation_shapes, 2)
    by_mark = {opened.mark(episode): episode for episode in (0, 1)}
    mark, index = data.noise_keys[late[0]]
    shown = opened.moment(by_mark[mark], index - n)
    task = shown.pop("task")
    batch = {key: value[None] for key, value in shown.items()} | {"task": [task]}
    chunk = plain.predict(batch, [(mark, index - n)])[0, n:]
    found = data.raw[PREVIOUS][late[0]]
    np.testing.assert_allclose(found[: len(chunk)], chunk, atol=1e-5)
    assert np.isnan(found[len(chunk) :]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pictures_of_a_file_are_bytes_too(strangers_policy, tmp_path, dtype):
    """A26: numbers in [0, 1] would be divided by 255 again."""
    rows = [frame(episode, 0) for episode in range(4)]
    arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {"episode": np.arange(4)}
    arrays = {
        key: np.stack([value, value], 1) if "observation" in key else value for key, value in arrays.items()
    }
    camera = "observation.images.top"
    np.savez(tmp_path / "obs.npz", **arrays | {camera: (arrays[camera] / 255).astype(dtype)})
    asked = command(strangers_policy, file=str(tmp_path / "obs.npz"))
    with pytest.raises(ObservationMismatch, match=rf"top' is {np.dtype(dtype)}; pictures are uint8"):
        observe(asked, load(asked))
