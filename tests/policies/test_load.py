"""Loading checkpoints, opaque policies, sessions: observations in the robot's units to actions in them."""

import shutil
from dataclasses import field, make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from safetensors.torch import load_file, save_file

from vivace.accel.apply import calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.checkpoint import find as finding
from vivace.policies.checkpoint.find import ZOO, resolve
from vivace.policies.checkpoint.weights import check_finite
from vivace.policies.errors import (
    BadSetting,
    NonFiniteActions,
    ObservationMismatch,
    PlanMismatch,
    PolicyNotFound,
    UnsupportedPolicy,
)
from vivace.policies.execution import as_trained, sample
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import load_policy, stage
from vivace.policies.placement import DTYPES, Placement
from vivace.policies.sampling.noise import EpisodeNoise, GlobalNoise
from vivace.policies.session import Session
from vivace.policies.spec import PREVIOUS, ActionKind
from vivace.policies.tiny.policies import tiny_dp_transformer

STATE, CAMERA = "observation.state", "observation.images.front"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with state and image, its actions between 10 and 30."""
    policy = tiny_dp_transformer(images=True)
    stats = {
        STATE: {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
        "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
        CAMERA: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
    }
    path = tmp_path_factory.mktemp("saved") / "policy"
    policy.save_pretrained(path)
    for pipeline in make_dp_transformer_pre_post_processors(policy.config, stats):
        pipeline.save_pretrained(path)
    return path


def observation(n: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        STATE: random.uniform(-2, 2, (n, 2, 5)).astype(np.float32),
        CAMERA: random.integers(0, 256, (n, 2, 64, 64, 3), dtype=np.uint8),
    }


@pytest.fixture
def session(folder):
    loaded = load_policy(folder, action_kinds=(ActionKind.DELTA,) * 3)
    # lerobot lists images as CHW, robots and simulators give HWC
    assert loaded.staged.spec.observation_shapes[CAMERA] == (3, 64, 64)
    return Session(loaded)


def test_a_saved_policy_is_the_policy(folder):
    loaded = load_policy(folder)
    fresh = tiny_dp_transformer(images=True)
    assert all(torch.equal(v, loaded.policy.state_dict()[k]) for k, v in fresh.state_dict().items())
    pipelines = loaded.preprocess, loaded.postprocess
    assert loaded.fingerprint == fingerprint(fresh, loaded.staged.spec.block_ids, pipelines)
    assert loaded.policy.config.type == "dp_transformer"


def test_predict_normalises_and_brings_actions_back(session):
    actions = session.predict(observation(), [(1, 0), (2, 0)])
    assert actions.shape == (2, 7, 3)
    assert (actions >= 10 - 1e-3).all()
    assert (actions <= 30 + 1e-3).all()
    batch = session.prepare(observation())
    assert batch[STATE].abs().max() <= 1
    np.testing.assert_allclose(batch[STATE].numpy(), observation()[STATE] / 2, atol=1e-6)
    assert batch[CAMERA].shape == (2, 2, 3, 64, 64)
    normalised = sample(session.execution, batch, EpisodeNoise([(1, 0), (2, 0)]))[:, 1:]
    np.testing.assert_allclose(actions, 20 + 10 * normalised.numpy(), atol=1e-3)


@pytest.mark.parametrize(("change", "message"), [
    (lambda o: o.pop(STATE), r"\['observation\.images\.front'\], but the policy needs 'observation\.state'"),
    (lambda o: o.update({STATE: np.zeros((2, 2, 4), np.float32)}), r"shape \(2, 2, 4\)"),
    (lambda o: o.update({STATE: np.full((2, 2, 5), np.nan, np.float32)}), "holds NaN or infinity"),
    (lambda o: o.update({CAMERA: np.zeros((2, 2, 32, 32, 3), np.uint8)}), r"'observation\.images\.front'"),
    (lambda o: o.update({CAMERA: o[CAMERA] / np.float32(255)}), "is float32; pictures are uint8"),
    (lambda o: o.update({STATE: o[STATE][..., :1]}), r"has shape \(2, 2, 1\), needed is"),
    (lambda o: o.update({STATE: o[STATE].astype(str)}), "real numbers are needed"),
    (lambda o: o.update({PREVIOUS: np.zeros((2, 3, 1), np.float32)}), "is float32 of shape"),
])  # fmt: skip
def test_observations_that_do_not_fit_are_refused(session, change, message):
    values = observation()
    change(values)
    with pytest.raises(ObservationMismatch, match=message):
        session.predict(values, [(1, 0), (2, 0)])


def test_a_fingerprint_tells_weights_config_and_device_apart(folder):
    policy = tiny_dp_transformer()
    blocks = stage(policy).spec.block_ids
    before = fingerprint(policy, blocks)
    policy.config.device = "cuda"
    assert fingerprint(policy, blocks) == before
    policy.config.clip_sample = False
    assert fingerprint(policy, blocks).config != before.config
    with torch.no_grad():
        policy.model.head.bias[0] += 1e-3
    assert fingerprint(policy, blocks).weights != before.weights


def test_other_statistics_are_another_fingerprint(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_policy(copy).fingerprint == load_policy(folder).fingerprint
    file = next(copy.glob("policy_postprocessor_*.safetensors"))
    save_file({name: 3 * tensor for name, tensor in load_file(file).items()}, file)
    before, after = load_policy(folder).fingerprint, load_policy(copy).fingerprint
    assert after.processors != before.processors
    assert replace(after, processors=before.processors) == before
    with pytest.raises(PlanMismatch, match=r"its processors \(statistics of observations and actions among"):
        AccelerationPlan(before).check(after)


def test_settings_of_processors_count_but_their_device(folder):
    loaded = load_policy(folder)
    pipelines = loaded.preprocess, loaded.postprocess
    steps = {type(step).__name__: step for step in loaded.preprocess.steps}
    steps["DeviceProcessorStep"].device = "cuda"
    assert fingerprint(loaded.policy, (), pipelines).processors == loaded.fingerprint.processors
    steps["NormalizerProcessorStep"].eps = 0.1
    assert fingerprint(loaded.policy, (), pipelines).processors != loaded.fingerprint.processors


@pytest.mark.parametrize(("name", "error"), [("float32", 0.0), ("bfloat16", 0.3), ("float16", 0.05)])
def test_a_checkpoint_runs_in_the_dtype_that_is_asked_for(folder, session, name, error):
    loaded = load_policy(folder, dtype=name)
    assert loaded.placement == Placement(dtype=DTYPES[name])
    assert loaded.fingerprint == session.loaded.fingerprint, "a plan of the weights as stored fits"
    found = Session(loaded).predict(observation(), [(1, 0), (2, 0)])
    wanted = session.predict(observation(), [(1, 0), (2, 0)])
    assert found.dtype == np.float32
    assert np.abs(found - wanted).mean() <= error  # of actions between 10 and 30
    assert (found != wanted).any() == bool(error)


def test_a_dtype_or_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(BadSetting, match=r"policy.dtype='int4'; choose one of float32, bfloat16, float16"):
        load_policy(folder, dtype="int4")
    for device in ("abacus", "meta", "cuda:63"):
        with pytest.raises(BadSetting, match=f"device '{device}' cannot be used on this machine .* has cpu"):
            load_policy(folder, device)


def test_weights_beyond_float16_are_refused_by_name(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "model.safetensors"
    save_file(load_file(file) | {"model.head.bias": torch.tensor([0.0, 1e6, 0.0])}, file)
    assert load_policy(copy, dtype="bfloat16").placement.dtype == torch.bfloat16
    with pytest.raises(
        BadSetting, match=r"'model\.head\.bias' is too large for float16; give --policy.dtype"
    ):
        load_policy(copy, dtype="float16")


def test_weights_that_are_not_finite_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.head.bias"][1] = torch.inf
    save_file(tensors, file)
    with pytest.raises(PolicyNotFound, match=r"weight 'model\.head\.bias' holds NaN or infinity"):
        load_policy(copy)


def test_buffers_may_hold_infinity_but_not_nan(tmp_path):
    model = torch.nn.Module()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(tmp_path, model)
    model.mask[0] = torch.nan
    with pytest.raises(PolicyNotFound, match="buffer 'mask' holds NaN; train again"):
        check_finite(tmp_path, model)


def test_a_batch_has_rows_and_a_key_for_each(session):
    with pytest.raises(ObservationMismatch, match="the batch holds no observation; give at least one"):
        session.predict(observation(0), [])
    with pytest.raises(ObservationMismatch, match="there are 2 observations and 1 noise keys; one key a row"):
        session.predict(observation(), [(1, 0)])


def test_actions_that_are_not_finite_are_not_predicted(folder):
    loaded = load_policy(folder)
    with torch.no_grad():
        loaded.policy.model.head.bias[0] = torch.nan
    with pytest.raises(NonFiniteActions, match="gave NaN or infinity in 2 of 2 chunks, in row"):
        Session(loaded).predict(observation(), [(1, 0), (2, 0)])


class Dice(torch.nn.Module):
    """A policy that draws its actions from torch's global generator."""

    def __init__(self):
        super().__init__()
        self.config = ACTConfig(
            input_features={STATE: PolicyFeature(FeatureType.STATE, (5,))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
            device="cpu", chunk_size=6, n_action_steps=4,
        )  # fmt: skip

    def reset(self): ...

    def predict_action_chunk(self, batch):
        return torch.randn(len(batch[STATE]), 6, 3)


def test_an_opaque_policy_draws_as_its_noise_keys_say():
    execution = as_trained(OpaquePolicy(Dice()))

    def chunks(*keys):
        return sample(execution, {STATE: torch.zeros(len(keys), 1, 5)}, EpisodeNoise(keys))

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    pair = chunks((1, 0), (2, 0))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was moved"
    assert not torch.equal(pair[0], pair[1])
    assert torch.equal(pair, chunks((1, 0), (2, 0)))
    assert torch.equal(pair[1:], chunks((2, 0))), "a row depends on its neighbours"


def test_paths(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pretrained_model").symlink_to(folder)
    assert resolve(tmp_path / "run") == tmp_path / "run" / "pretrained_model"
    with pytest.raises(PolicyNotFound, match="no checkpoint folder at zoo/none; give a lerobot checkpoint"):
        resolve("zoo/none")
    for config in ZOO.glob("*/config.json"):
        assert resolve(f"zoo/{config.parent.name}") == config.parent


def test_the_zoo_is_found_in_a_checkout_and_where_it_was_installed(tmp_path, monkeypatch):
    assert finding._zoo() == ZOO == Path(finding.__file__).parents[1] / "zoo"
    monkeypatch.setattr(finding, "__file__", str(tmp_path / "site" / "policies" / "load.py"))
    monkeypatch.setattr(finding, "ZOO", finding._zoo())
    with pytest.raises(
        PolicyNotFound, match=r"no checkpoint folder at zoo/reach; .* pip install 'vivace\[zoo\]'"
    ):
        resolve("zoo/reach")
    (tmp_path / "other" / "vivace").mkdir(parents=True)
    (tmp_path / "other" / "vivace" / "zoo").symlink_to(ZOO)
    monkeypatch.syspath_prepend(tmp_path / "other")
    monkeypatch.setattr(finding, "ZOO", finding._zoo())
    assert resolve("zoo/reach") == tmp_path / "other" / "vivace" / "zoo" / "reach"


def test_a_policy_without_adapter_runs_but_has_no_blocks():
    config = ACTConfig(
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (5,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
        device="cpu", chunk_size=6, n_action_steps=4, dim_model=16, n_heads=2, dim_feedforward=16,
        n_encoder_layers=1, n_decoder_layers=1, use_vae=False, pretrained_backbone_weights=None,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = ACTPolicy(config).eval()
    staged = stage(policy)
    batch = {STATE: torch.rand(2, 1, 5), "observation.environment_state": torch.rand(2, 1, 4)}
    chunk = sample(as_trained(staged), batch, GlobalNoise())
    theirs = policy.predict_action_chunk({key: value[:, 0] for key, value in batch.items()})
    torch.testing.assert_close(chunk[:, : theirs.shape[1]], theirs)
    data = CalibrationData(batch, ((1, 0), (2, 0)))
    for kind in ("block_cache", "hoist", "forecast", "step_schedule"):
        with pytest.raises(UnsupportedPolicy, match="none that come apart"):
            calibrate(staged, fingerprint(policy, ()), data, [(kind, {})])


def test_a_field_at_its_default_is_not_part_of_the_fingerprint():
    old = make_dataclass("Old", [("width", int, field(default=8)), ("type", str, field(default="mine"))])
    new = make_dataclass("New", [("added", int, field(default=3))], bases=(old,))
    model = torch.nn.Linear(2, 2)

    def mark(config):
        model.config = config
        return fingerprint(model, ())

    assert mark(old(width=16)) == mark(new(width=16)) != mark(old())
    assert mark(new(added=4)).config != mark(old()).config
