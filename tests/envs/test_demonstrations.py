import json

import numpy as np
import pytest

from vivace.envs import CollectSettings, NoiseSettings, collect, expert, load_demonstrations, record
from vivace.policies.errors import BadSetting


@pytest.mark.sim
def test_labels_are_the_experts_own_whatever_was_executed():
    noisy = NoiseSettings(scales=(0.2,), probabilities=(1.0,))
    seen: list[tuple[int, int]] = []
    settings = CollectSettings(task="reach-moving", episodes=3, noise=noisy)
    demos = collect(settings, on_episode=lambda kept, tried: seen.append((kept, tried)))
    act = expert("reach-moving")
    np.testing.assert_array_equal(demos.action, [act(state) for state in demos.state])
    assert demos.state.shape == (len(demos.episode), 39)
    assert demos.state.dtype == demos.action.dtype == np.float32
    assert demos.episode.tolist() == sorted(demos.episode)
    assert set(demos.episode) == {0, 1, 2}
    assert seen[-1][0] == 3


@pytest.mark.sim
def test_dataset_round_trip(tmp_path):
    settings = CollectSettings(task="push-v3", episodes=2, seed=7)
    record(settings, tmp_path / "demos")
    stored, direct = load_demonstrations(tmp_path / "demos"), collect(settings)
    np.testing.assert_array_equal(stored.state, direct.state)
    np.testing.assert_array_equal(stored.action, direct.action)
    np.testing.assert_array_equal(stored.episode, direct.episode)
    info = json.loads((tmp_path / "demos/meta/info.json").read_text())
    assert (info["fps"], info["total_episodes"]) == (80, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]
    with pytest.raises(BadSetting, match="exists already"):
        record(settings, tmp_path / "demos")


@pytest.mark.sim
def test_images_are_stored_for_lerobot(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    settings = CollectSettings(task="reach-v3", episodes=1, image_size=32, tail_steps=0)
    record(settings, tmp_path / "demos")
    dataset = LeRobotDataset("vivace/reach-v3", root=tmp_path / "demos")
    frame = dataset[0]
    assert tuple(frame["observation.images.corner2"].shape) == (3, 32, 32)
    assert frame["task"] == "Reach a goal position"
    assert len(load_demonstrations(tmp_path / "demos").state) == len(dataset)


@pytest.mark.sim
def test_an_interrupted_recording_leaves_nothing(tmp_path):
    def interrupt(kept: int, tried: int) -> None:
        if kept == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(CollectSettings(task="reach-v3", episodes=3), tmp_path / "demos", on_episode=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_an_expert_that_fails_ends_the_collection():
    settings = CollectSettings(task="push-v3", episodes=1, max_episode_steps=2)
    with pytest.raises(BadSetting, match="succeeded in 0 of 50 episodes; .*raise max_episode_steps"):
        collect(settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "needed: episodes >= 1"),
        ({"seed": 100_000}, "seeds from 100000 on are for evaluation"),
        ({"seed": -1}, "seed -1 with 300 episodes"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        CollectSettings(task="push-v3", **options)


def test_a_folder_without_dataset_is_refused(tmp_path):
    with pytest.raises(BadSetting, match="holds no data"):
        load_demonstrations(tmp_path)
