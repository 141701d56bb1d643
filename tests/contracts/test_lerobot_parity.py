"""From what a robot gives to what it is told, by lerobot's own path and by a `Session`: the same.

lerobot's path is that of `lerobot-eval`: its loader, `preprocess_observation`, the checkpoint's preprocessor,
the policy, the checkpoint's postprocessor. Noise is the same on both sides, since every draw of one shape is
one fixed draw here. Faults of lerobot's own checkpoints, by their ids: A11 to A14, G1 to G4, G9, G13, B1, G7.
"""

import json
import shutil
from itertools import product
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.rtc.relative import reanchor_relative_rtc_prefix
from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep
from lerobot_itself import LeRobot, draw_alike, moments, ours
from lerobot_policies import TASK, TYPES, saved

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.export.export import export
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.simulation.rollout import RolloutSettings, rollout
from vivace.policies.errors import BadSetting, ObservationMismatch
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS, ActionKind

EXACT = {"rtol": 0, "atol": 0}
ROUNDED = {"rtol": 1e-4, "atol": 1e-4}
"""Where a staged form computes in another order than lerobot; actions are around 10."""


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
    """Make every draw of a shape the same draw, whoever draws."""
    draw_alike(monkeypatch)


def both(checkpoint: Path, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The chunks of a session and of lerobot, as far as lerobot gives them."""
    loaded = load_policy(checkpoint)
    seen = moments(loaded.staged.spec, rows)
    found = ours(Session(loaded, task=TASK), seen)
    wanted = lerobot_gives(LeRobot(checkpoint), loaded, seen)
    return found[:, : wanted.shape[1]], wanted


def lerobot_gives(theirs: LeRobot, loaded: LoadedPolicy, seen: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The chunk of lerobot's policy, or what its loop executes of one that is asked no other way."""
    spec = loaded.staged.spec
    if spec.n_obs_steps == 1 and spec.type in CHUNKED:
        return theirs.chunk(seen[0])
    return theirs.executed(seen, spec.n_action_steps)


STACKS = ("multi_task_dit", "groot")
"""Types whose cameras are of one size."""
CHUNKED = (
    "act",
    "diffusion",
    "multi_task_dit",
    "pi0",
    "pi05",
    "pi0_fast",
    "smolvla",
    "xvla",
    "eo1",
    "vla_jepa",
    "groot",
)
MODES = ("MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY")


def normalised(state: str, action: str, visual: str = "IDENTITY") -> dict[str, dict]:
    """A policy's normalisation, as a field of its config."""
    names = {"STATE": state, "ACTION": action, "VISUAL": visual}
    return {"normalization_mapping": {key: NormalizationMode[name] for key, name in names.items()}}


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_policy_acts_as_in_lerobot(kind):
    """G1 (prompts that hold the state), G3, G4: what the preprocessor adds reaches the policy."""
    found, wanted = both(saved(kind))
    np.testing.assert_allclose(found, wanted, **EXACT)
    assert np.ptp(wanted) > 0.1
    found, wanted = both(saved(kind), rows=2)
    np.testing.assert_allclose(found, wanted, **ROUNDED)
    assert not np.allclose(wanted[0], wanted[1], **ROUNDED)


def same(found, wanted) -> bool:
    """Whether two things a policy is given are equal."""
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    return type(found) is type(wanted) and found == wanted


@pytest.mark.parametrize("kind", TYPES)
def test_a_policy_is_given_all_that_lerobot_gives_it(kind):
    """G1, G3, G4, G13: observations, prompts, ids, texts, whatever the preprocessor returns."""
    checkpoint = saved(kind)
    session = Session(load_policy(checkpoint), task=TASK)
    seen = moments(session.spec, rows=2)
    stacked = {key: np.stack([moment[key] for moment in seen], axis=1) for key in seen[0]}
    batch = session.prepare(stacked)
    theirs = LeRobot(checkpoint)
    ready = [theirs.ready(moment, TASK) for moment in seen]
    outcomes = {"action", "next.reward", "next.done", "next.truncated", "info"}
    assert batch.keys() == ready[-1].keys() - outcomes
    for key, value in batch.items():
        if key in theirs.policy.config.input_features:
            assert same(value, torch.stack([one[key] for one in ready], dim=1)), key
        else:
            assert same(value, ready[-1][key]), key


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *product(("multi_task_dit", "pi0", "pi05", "pi0_fast", "smolvla", "xvla"), MODES),
        *product(("eo1", "vla_jepa", "evo1", "vqbet", "gaussian_actor"), ("MEAN_STD", "QUANTILES")),
    ],
)
def test_every_normalisation_is_that_of_lerobot(kind, mode):
    """G1: states and actions normalised in every way lerobot knows."""
    found, wanted = both(saved(kind, **normalised(mode, mode)))
    np.testing.assert_allclose(found, wanted, **EXACT)


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("act", ("QUANTILES", "MIN_MAX", "MEAN_STD")),
        ("diffusion", ("IDENTITY", "QUANTILE10", "MIN_MAX")),
        *product(("vqbet", "tdmpc", "gaussian_actor", "smolvla"), [("MEAN_STD", "MIN_MAX", "MEAN_STD")]),
    ],
)
def test_pictures_are_normalised_as_in_lerobot(kind, modes):
    found, wanted = both(saved(kind, **normalised(*modes)))
    np.testing.assert_allclose(found, wanted, **EXACT)


def with_relative_actions(folder: Path, checkpoint: Path) -> Path:
    """A copy of a checkpoint whose saved processors hold lerobot's pair of relative and absolute actions."""
    copy = folder / "relative"
    shutil.copytree(checkpoint, copy)
    for name, normaliser, step, after in (
        ("policy_preprocessor.json", "normalizer_processor", "relative_actions_processor", 0),
        ("policy_postprocessor.json", "unnormalizer_processor", "absolute_actions_processor", 1),
    ):
        pipeline = json.loads((copy / name).read_text())
        at = [it["registry_name"] for it in pipeline["steps"]].index(normaliser)
        pipeline["steps"].insert(at + after, {"registry_name": step, "config": {"enabled": True}})
        (copy / name).write_text(json.dumps(pipeline))
    return copy


def test_relative_actions_in_saved_processors(tmp_path):
    """A12: actions that are offsets to the state at which they were predicted."""
    plain = saved("act")
    found, wanted = both(with_relative_actions(tmp_path, plain), rows=2)
    np.testing.assert_allclose(found, wanted, **ROUNDED)
    assert not np.allclose(found, both(plain, rows=2)[0], **ROUNDED)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast"])
def test_relative_actions_of_a_policy(kind):
    """G2: `use_relative_actions`, without one of the joints."""
    names = ["shoulder", "elbow", "wrist", "gripper"]
    relative = {"use_relative_actions": True, "action_feature_names": names}
    found, wanted = both(saved(kind, **relative), rows=2)
    np.testing.assert_allclose(found, wanted, **ROUNDED)
    plain, _ = both(saved(kind), rows=2)
    assert np.abs(found - plain)[..., :3].min() > 0.01
    np.testing.assert_allclose(found[..., 3], plain[..., 3], **ROUNDED)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast", "smolvla", "xvla", "evo1"])
def test_cameras_that_nobody_has_are_left_to_the_policy(kind):
    """A11: `empty_cameras` are filled and masked by the policy, and the robot is not asked for them."""
    checkpoint = saved(kind, empty_cameras=1, **({"max_views": 3} if kind == "evo1" else {}))
    assert "observation.images.empty_camera_0" not in load_policy(checkpoint).staged.spec.observation_shapes
    found, wanted = both(checkpoint)
    np.testing.assert_allclose(found, wanted, **EXACT)


@pytest.mark.parametrize("kind", ["act", "multi_task_dit", "pi0_fast", "smolvla"])
def test_observations_have_the_names_of_the_robot(kind, tmp_path):
    """A13: a renaming inside a checkpoint, and one that is given."""
    rename_map = {"observation.images.top": "observation.images.front"}
    checkpoint = saved(kind)
    given = load_policy(checkpoint, rename_map=rename_map)
    assert "observation.images.top" in given.staged.spec.observation_shapes
    assert "observation.images.front" not in given.staged.spec.observation_shapes
    seen = moments(given.staged.spec)
    found = ours(Session(given, task=TASK), seen)
    wanted = lerobot_gives(LeRobot(checkpoint, rename_map), given, seen)
    np.testing.assert_allclose(found[:, : wanted.shape[1]], wanted, **EXACT)

    inside = tmp_path / "renaming"
    shutil.copytree(checkpoint, inside)
    file = inside / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    pipeline["steps"][0]["config"]["rename_map"] = rename_map
    file.write_text(json.dumps(pipeline))
    renaming = load_policy(inside)
    assert renaming.staged.spec == given.staged.spec
    assert renaming.fingerprint == given.fingerprint == load_policy(checkpoint).fingerprint
    np.testing.assert_array_equal(ours(Session(renaming, task=TASK), seen), found)


def test_a_renaming_to_what_the_policy_lacks_is_refused():
    """A13: a name that is misspelt, and two that become one."""
    with pytest.raises(BadSetting, match=r"renames to 'observation.images.fornt', which the policy does not"):
        load_policy(saved("act"), rename_map={"observation.images.top": "observation.images.fornt"})
    twice = dict.fromkeys(("observation.images.a", "observation.images.b"), "observation.images.front")
    with pytest.raises(
        BadSetting, match=r"turns both 'observation.images.a' and 'observation.images.b' into"
    ):
        load_policy(saved("act"), rename_map=twice)
    with pytest.raises(BadSetting, match=r"gives two of the policy's observations .* one name"):
        load_policy(saved("act"), rename_map={"observation.images.wrist": "observation.images.front"})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("multi_task_dit", {"image_resize_shape": (40, 40)}),
        ("vla_jepa", {"resize_images_to": (64, 64)}),
        *((kind, {}) for kind in ("smolvla", "pi0", "xvla", "eo1", "groot", "evo1")),
    ],
)
def test_pictures_of_another_size_enter_where_the_policy_resizes(kind, changes):
    """A14, A15: as lerobot takes them; of two sizes where it resizes camera by camera."""
    checkpoint = saved(kind, **changes)
    loaded = load_policy(checkpoint)
    seen, random = moments(loaded.staged.spec), np.random.default_rng(1)
    for moment in seen:
        for key in ("observation.images.front", "observation.images.wrist"):
            size = (60, 80) if "front" in key or kind in STACKS else (50, 50)
            moment[key] = random.integers(0, 256, (1, *size, 3), np.uint8)
    wanted = lerobot_gives(LeRobot(checkpoint), loaded, seen)
    found = ours(Session(loaded, task=TASK), seen)[:, : wanted.shape[1]]
    np.testing.assert_allclose(found, wanted, **EXACT)


def test_cameras_of_two_sizes_are_refused_where_pictures_are_stacked():
    """A15: one line instead of a stack of torch's."""
    loaded = load_policy(saved("multi_task_dit", image_resize_shape=(40, 40)))
    seen = moments(loaded.staged.spec)
    for moment in seen:
        moment["observation.images.wrist"] = np.zeros((1, 60, 80, 3), np.uint8)
    with pytest.raises(ObservationMismatch, match=r"front 40 x 40, .*wrist 60 x 80.*one size"):
        ours(Session(loaded, task=TASK), seen)


@pytest.mark.parametrize("kind", ["act", "diffusion", "vla_jepa"])
def test_pictures_of_another_size_are_refused_where_nobody_resizes(kind):
    """A14: a policy that reads pictures as they are, of the size it was trained on."""
    loaded = load_policy(saved(kind))
    seen = moments(loaded.staged.spec)
    for moment in seen:
        moment["observation.images.front"] = np.zeros((1, 60, 80, 3), np.uint8)
    with pytest.raises(ObservationMismatch, match=r"has shape .*60, 80.*needed is"):
        ours(Session(loaded, task=TASK), seen)


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_a_single_camera_and_the_state_of_the_world(kind):
    """G13: lerobot's `observation.image` and `observation.environment_state`, as PushT has them."""
    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (4,)),
    }
    found, wanted = both(
        saved(
            kind,
            input_features=inputs,
            normalization_mapping={
                name: NormalizationMode.MEAN_STD for name in ("VISUAL", "STATE", "ENV", "ACTION")
            },
        )
    )
    np.testing.assert_allclose(found, wanted, **EXACT)


@pytest.mark.parametrize("scale", [1, 1 / 255], ids=["0 to 255", "0 to 1"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int64"])
def test_pictures_enter_as_bytes_or_not_at_all(dtype, scale):
    """A26: numbers in [0, 1] would be divided by 255 again."""
    session = Session(load_policy(saved("pi0")), task=TASK)
    seen = moments(session.spec)
    seen[0]["observation.images.front"] = (seen[0]["observation.images.front"] * scale).astype(dtype)
    with pytest.raises(ObservationMismatch, match=rf"front' is {dtype}; pictures are uint8 in \[0, 255\]"):
        ours(session, seen)


def test_a_mark_of_padding_reaches_the_policy():
    """SmolVLA leaves a camera out whose rows are marked as padding."""
    checkpoint = saved("smolvla")
    session = Session(load_policy(checkpoint), task=TASK)
    seen = moments(session.spec)
    mark = {"observation.images.wrist_padding_mask": np.array([False])}
    stacked = {key: value[:, None] for key, value in seen[0].items()}
    found, plain = (session.predict(stacked | more, [(0, 0)]) for more in (mark, {}))
    theirs = LeRobot(checkpoint)
    ready = theirs.ready(seen[0], TASK) | {key: torch.from_numpy(value) for key, value in mark.items()}
    with torch.inference_mode():
        wanted = theirs.post(theirs.policy.predict_action_chunk(ready)).numpy()
    np.testing.assert_allclose(found, wanted, **EXACT)
    assert not np.allclose(found, plain, **ROUNDED)


def test_a_robot_of_another_domain_has_its_own_weights(tmp_path):
    """G3: xvla's domain, which the preprocessor adds."""
    copy = tmp_path / "domain"
    shutil.copytree(saved("xvla"), copy)
    file = copy / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    (step,) = [it for it in pipeline["steps"] if it["registry_name"] == "xvla_add_domain_id"]
    step["config"]["domain_id"] = 2
    file.write_text(json.dumps(pipeline))
    found, wanted = both(copy)
    np.testing.assert_allclose(found, wanted, **EXACT)
    assert np.abs(found - both(saved("xvla"))[0]).max() > 0.05


def test_what_a_chunk_continues_becomes_relative_and_normalised(tmp_path):
    """G2: the chunk before, in the robot's units, by the steps that lerobot's real-time chunking takes."""
    checkpoint = with_relative_actions(tmp_path, saved("diffusion"))
    loaded = load_policy(checkpoint)
    seen = moments(loaded.staged.spec, rows=2)
    before = np.random.default_rng(2).uniform(0, 6, (2, 4, 4)).astype(np.float32)
    stacked = {key: np.stack([moment[key] for moment in seen], axis=1) for key in seen[0]}
    settings = RealTimeChunking()
    given = stacked | {PREVIOUS: before, DELAY: np.array([1, 2])}
    follow = Session(loaded, chunking=settings).inputs(given).follow
    first = loaded.staged.spec.first_action
    theirs = LeRobot(checkpoint)
    relative = next(it for it in theirs.pre.steps if isinstance(it, RelativeActionsProcessorStep))
    normaliser = next(it for it in theirs.pre.steps if isinstance(it, NormalizerProcessorStep))
    state = torch.from_numpy(seen[-1]["observation.state"])
    wanted = reanchor_relative_rtc_prefix(torch.from_numpy(before), state, relative, normaliser, "cpu")
    np.testing.assert_allclose(follow.actions[:, first : first + 4], wanted, **EXACT)


def test_tokens_are_written_beside_a_chunk_that_is_going_on():
    """G2: of a policy that writes tokens; what is not known of the chunk before is no number."""
    checkpoint = saved("pi0_fast", use_relative_actions=True)
    session = Session(load_policy(checkpoint), task=TASK)
    seen = moments(session.spec)
    stacked = {key: value[:, None] for key, value in seen[0].items()}
    before = np.full((1, 4, 4), np.nan, np.float32)
    before[:, :2] = 3.0
    found = session.predict(stacked | {PREVIOUS: before, DELAY: np.array([1])}, [(0, 0)])
    np.testing.assert_array_equal(found, session.predict(stacked, [(0, 0)]))


class Parade(gymnasium.Env):
    """Shows one moment after the other, whatever is done."""

    control_hz = 10.0

    def __init__(self, shown):
        self.shown = shown

    def reset(self, *, seed=None, options=None):
        self.left = list(self.shown)
        return self.left.pop(0), {}

    def step(self, action):
        return self.left.pop(0), 0.0, False, len(self.left) == 0, {"is_success": False}


@pytest.mark.long
def test_temporal_ensembling_is_kept(tmp_path):
    """B1: ACT's loop, a bundle's too, asks every tick and executes the mean of what chunks mean for it."""
    checkpoint = saved("act", temporal_ensemble_coeff=0.1, n_action_steps=1)
    loaded = load_policy(checkpoint, action_kinds=(ActionKind.ABSOLUTE,) * 4)
    one = loaded.staged.spec
    shown = [moments(one)[0] for _ in range(13)]
    for i, moment in enumerate(shown):
        moment["observation.state"] = moment["observation.state"] + np.float32(0.7 * i)
    session = Session(loaded, task=TASK)
    alone = [{key: value[0] for key, value in moment.items()} for moment in shown]
    raw = {key: value[:, None] for key, value in shown[0].items()}
    data = CalibrationData(session.prepare(raw), ((1, 0),), raw=raw)
    bundle = export(loaded, AccelerationPlan(loaded.fingerprint), data, tmp_path / "bundle")
    assert bundle.spec.temporal_ensemble == session.spec.temporal_ensemble == 0.1
    settings = RolloutSettings(n_episodes=1, loop=LoopSettings())
    theirs = LeRobot(checkpoint)
    theirs.policy.reset()
    with torch.inference_mode():
        wanted = [theirs.post(theirs.policy.select_action(theirs.ready(it, TASK)))[0] for it in shown[:-1]]
    for policy in (session, OrtPolicy(bundle)):
        (result,) = rollout(lambda: Parade(alone), policy.predict, policy.spec, settings)
        found = np.stack([record.action for record in result.records])
        np.testing.assert_allclose(found, np.stack(wanted), **ROUNDED)
    firsts = np.concatenate([theirs.chunk(moment)[:, 0] for moment in shown[:-1]])
    assert np.abs(found - firsts).max() > 0.01
