"""A robot that nobody here has: 7 joints, two cameras of different sizes; its recordings and its policy.

Both are as lerobot writes them: a LeRobotDataset of a few seconds, and a checkpoint with processors that hold
the dataset's statistics.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from vivace.eval.training.fit import save
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.tiny.policies import tiny_dp_transformer

JOINTS = tuple(f"joint_{i}.pos" for i in range(1, 8))
CAMERAS = {"top": (72, 96), "wrist": (64, 80)}
"""Height and width [px]."""
FPS = 10
TASKS = ("stack the cups", "fold the towel")


def record(folder: Path, episodes: int = 4, frames: int = 12, videos: bool = False) -> Path:
    """Record episodes of smooth joint angles and of pictures that change with them."""
    images = {
        f"observation.images.{name}": {
            "dtype": "video" if videos else "image",
            "shape": (*size, 3),
            "names": ["height", "width", "channels"],
        }
        for name, size in CAMERAS.items()
    }
    joints = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    dataset = LeRobotDataset.create(
        "stranger/cups",
        fps=FPS,
        features={"observation.state": joints, "action": joints, **images},
        root=folder,
        robot_type="stranger",
        use_videos=videos,
    )
    for episode in range(episodes):
        for index in range(frames):
            dataset.add_frame(frame(episode, index) | {"task": TASKS[episode % len(TASKS)]})
        dataset.save_episode()
    dataset.finalize()
    return folder


def frame(episode: int, index: int) -> dict[str, np.ndarray]:
    """What is recorded at a frame of an episode: state, action and pictures."""
    angles = np.linspace(0.1, 0.7, len(JOINTS)) * np.sin(0.3 * index + episode)
    pictures = {
        f"observation.images.{name}": np.random.default_rng([episode, index, *size]).integers(
            0, 256, (*size, 3), np.uint8
        )
        for name, size in CAMERAS.items()
    }
    state = angles.astype(np.float32)
    return {"observation.state": state, "action": state + np.float32(0.05), **pictures}


def train(dataset: Path, folder: Path, names: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Save a policy that fits those recordings, its weights random, with their statistics.

    Args:
        dataset: the recordings.
        folder: where it goes.
        names: what a camera of the recordings is to the policy, where it is something else.
    """
    images = {
        f"observation.images.{names.get(name, name)}": PolicyFeature(FeatureType.VISUAL, (3, *size))
        for name, size in CAMERAS.items()
    }
    policy = tiny_dp_transformer(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (len(JOINTS),)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),))},
        resize_shape=(64, 64),
        n_obs_steps=2,
    )
    stats = LeRobotDataset("stranger/cups", root=dataset).meta.stats
    for theirs, own in names.items():
        stats[f"observation.images.{own}"] = stats.pop(f"observation.images.{theirs}")
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), folder)
    return folder
