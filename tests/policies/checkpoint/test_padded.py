"""Policies that pad states and actions, of a robot of other widths than config.json says: as in lerobot.

pi0's base says 32 numbers and smolvla's 6, whatever robot it is lent to or was trained further for.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot_itself import LeRobot, draw_alike, moments, ours
from lerobot_policies import ACTION_DIM, STATE_DIM, TASK, saved

from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy
from vivace.policies.session import Session

KINDS = ("pi0", "pi05", "smolvla")
STATE, ACTIONS, CAMERAS = 7, 6, ("front", "wrist")
JOINTS = ["shoulder", "elbow", "wrist", "palm", "thumb", "gripper"]
WIDE = 9
"""More than the miniatures pad to."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What is known of a dataset of 7 numbers of state and 6 of actions; the miniatures' are 5 and 4."""
    return record(tmp_path_factory.mktemp("recorded") / "data", STATE, ACTIONS)


def record(
    folder: Path, state: int, actions: int, names: list[str] | dict[str, list[str]] | None = None
) -> LeRobotDatasetMetadata:
    pictures = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    numbers = {"observation.state": state, "action": actions}
    meta = LeRobotDatasetMetadata.create(
        "stranger/arm",
        fps=10,
        root=folder,
        features={
            **{f"observation.images.{name}": pictures for name in CAMERAS},
            **{key: {"dtype": "float32", "shape": (n,), "names": None} for key, n in numbers.items()},
            "action": {"dtype": "float32", "shape": (actions,), "names": names},
        },
        use_videos=False,
    )
    random = np.random.default_rng(2)
    meta.stats = {
        key: {
            "mean": random.uniform(2, 4, n),
            "std": random.uniform(1, 2, n),
            "min": np.full(n, -1.0),
            "max": random.uniform(5, 7, n),
            "q01": np.full(n, -0.5),
            "q99": random.uniform(4, 5, n),
            "count": np.array([9]),
        }
        for key, n in numbers.items()
    }
    return meta


def base_of(kind: str, folder: Path, **settings: Any) -> Path:
    """The miniature of a type without statistics."""
    shutil.copytree(saved(kind, **settings), folder)
    for file in folder.glob("policy_*.json"):
        pipeline = json.loads(file.read_text())
        for step in pipeline["steps"]:
            if "normalizer" in step["registry_name"]:
                step.pop("state_file", None)
        file.write_text(json.dumps(pipeline))
    return folder


class Trained(LeRobot):
    """A base as lerobot's training begins with it, of a dataset."""

    def __init__(self, base: Path, meta: LeRobotDatasetMetadata):
        config = PreTrainedConfig.from_pretrained(base)
        config.pretrained_path = base
        self.policy = make_policy(config, ds_meta=meta).eval()
        settings = {"stats": meta.stats, "norm_map": config.normalization_mapping}
        outputs = config.output_features
        before = {"normalizer_processor": settings | {"features": {**config.input_features, **outputs}}}
        after = {"unnormalizer_processor": settings | {"features": outputs}}
        if getattr(config, "use_relative_actions", False):
            before["relative_actions_processor"] = {
                "enabled": True,
                "exclude_joints": config.relative_exclude_joints,
                "action_names": config.action_feature_names,
            }
            after["absolute_actions_processor"] = {"enabled": True}
        self.pre, self.post = make_pre_post_processors(
            config,
            base,
            dataset_stats=meta.stats,
            preprocessor_overrides=before,
            postprocessor_overrides=after,
        )

    def save(self, folder: Path) -> Path:
        for part in (self.policy, self.pre, self.post):
            part.save_pretrained(folder)
        return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_acts_as_lerobots_training_begins_with_it(kind, recorded, tmp_path, monkeypatch):
    """The actions are the dataset's; and so are those of what lerobot then saves, whose state is stale."""
    draw_alike(monkeypatch)
    base = base_of(kind, tmp_path / "base")
    lerobot = Trained(base, recorded)
    loaded = load_policy(base, statistics=recorded.stats)
    spec = loaded.staged.spec
    assert loaded.is_base
    assert (spec.observation_shapes["observation.state"], spec.action_dim) == ((STATE,), ACTIONS)
    seen = moments(spec)
    wanted = lerobot.executed(seen, spec.n_action_steps)
    np.testing.assert_array_equal(ours(Session(loaded, task=TASK), seen)[:, : spec.n_action_steps], wanted)

    folder = lerobot.save(tmp_path / "trained")
    config = json.loads((folder / "config.json").read_text())
    assert config["input_features"]["observation.state"]["shape"] == [STATE_DIM], "as lerobot leaves it"
    trained = load_policy(folder)
    assert not trained.is_base
    assert trained.staged.spec.observation_shapes["observation.state"] == (STATE,)
    again = ours(Session(trained, task=TASK), seen)
    np.testing.assert_array_equal(again[:, : spec.n_action_steps], wanted)
    np.testing.assert_array_equal(LeRobot(folder).executed(seen, spec.n_action_steps), wanted)


@pytest.mark.parametrize(
    ("names", "still"),
    [(JOINTS, [-1]), ({"motors": JOINTS}, []), (None, [0])],
    ids=["listed", "by group", "not named"],
)
def test_relative_actions_of_a_base_go_by_the_datasets_names(names, still, tmp_path, monkeypatch):
    """Which joint stays absolute is said by its name; as in lerobot a name of a group says it of none."""
    draw_alike(monkeypatch)
    recorded = record(tmp_path / "data", STATE, ACTIONS, names)
    relative = {"use_relative_actions": True, "action_feature_names": JOINTS[::-1]}
    base = base_of("pi0", tmp_path / "base", **relative)
    lerobot = Trained(base, recorded)
    loaded = load_policy(base, statistics=recorded.stats, action_names=tuple(names or ()))
    seen, n = moments(loaded.staged.spec), loaded.staged.spec.n_action_steps
    found = ours(Session(loaded, task=TASK), seen)[:, :n]
    np.testing.assert_array_equal(found, lerobot.executed(seen, n))
    assert load_policy(lerobot.save(tmp_path / "trained")).fingerprint == loaded.fingerprint
    absolute = load_policy(base_of("pi0", tmp_path / "absolute"), statistics=recorded.stats)
    moved = (found - ours(Session(absolute, task=TASK), seen)[:, :n])[0, 0]
    wanted = seen[0]["observation.state"][0, :ACTIONS].copy()
    wanted[still] = 0
    np.testing.assert_allclose(moved, wanted, rtol=0, atol=1e-4)


def test_fewer_numbers_than_it_says_are_padded_too(tmp_path):
    few = record(tmp_path / "few", STATE_DIM - 2, ACTION_DIM - 1)
    spec = load_policy(base_of("pi0", tmp_path / "base"), statistics=few.stats).staged.spec
    assert (spec.observation_shapes["observation.state"], spec.action_dim) == (
        (STATE_DIM - 2,),
        ACTION_DIM - 1,
    )


@pytest.mark.parametrize(
    ("kind", "state", "actions"),
    [("pi0", WIDE, ACTION_DIM), ("pi0", STATE_DIM, WIDE), ("act", 7, 4), ("act", 5, 6)],
)
def test_what_is_not_padded_is_refused(kind, state, actions, tmp_path):
    """More than the policy has room for, or one that pads nothing."""
    other = record(tmp_path / "other", state, actions)
    other.stats |= {f"observation.images.{name}": _of_pictures() for name in CAMERAS}
    with pytest.raises(PolicyNotFound, match="but the feature has .*: statistics of another dataset"):
        load_policy(base_of(kind, tmp_path / "base"), statistics=other.stats)


def _of_pictures() -> dict[str, torch.Tensor]:
    return {
        name: torch.full((3, 1, 1), value)
        for name, value in {"mean": 0.5, "std": 0.25, "min": 0.0, "max": 1.0}.items()
    }
