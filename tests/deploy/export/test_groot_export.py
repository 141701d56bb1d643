"""groot as a bundle: its pictures are prepared inside the graph, its prompt is written on the robot."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision
from lerobot_itself import moments
from lerobot_policies import TASK, saved
from torchvision.transforms import InterpolationMode

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.normalization import Normalization
from vivace.deploy.export.export import export
from vivace.deploy.export.packed import packing, restoring
from vivace.deploy.export.processors import picture_sizes, read_processors
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.load import load_policy
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.vla.qwen3_pictures import Resizing, patches_of

PLAN = [("dead_work", {}), ("hoist", {}), ("block_cache", {"method": "uniform", "updates": 2})]
OTHER = "Now: put IT, gently, under_the plate!"
"""An instruction that is told later than at export, longer and not formal."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint under a plan, and the bundle of it."""
    loaded = load_policy(saved("groot"))
    session = Session(loaded, task=TASK)
    raw = {key: value[:, None] for key, value in moments(session.spec)[0].items()} | {"task": [TASK]}
    data = CalibrationData(session.prepare(raw), ((5, 0),), raw=raw)
    fitted = replace(data, noise_keys=((1, 0),))
    plan = calibrate(loaded.staged, loaded.fingerprint, fitted, PLAN)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    bundle = export(loaded, plan, data, folder, [TASK])
    return SimpleNamespace(loaded=loaded, plan=plan, bundle=bundle, raw=raw, data=data)


@pytest.mark.long
@pytest.mark.shows("export", of="groot")
def test_a_bundle_acts_as_torch_does(exported):
    """From raw observations to the robot's units, whatever it is told."""
    policy = OrtPolicy(exported.bundle)
    session = Session(exported.loaded, accelerate(exported.loaded.staged, exported.plan))
    seen = {key: exported.raw[key] for key in session.spec.observation_shapes}
    chunks = []
    for task in (TASK, OTHER):
        session.task = policy.task = task
        found, wanted = (it.predict(seen, [(3, 0)]) for it in (policy, session))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        chunks.append(found)
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3
    receipt = exported.bundle.receipt
    assert receipt["chunk_error"] <= 1e-5
    assert receipt["lerobot_error"] <= 1e-4


@pytest.mark.long
def test_it_continues_no_chunks(exported):
    """lerobot writes what is known into groot's noise, which a bundle does not."""
    with pytest.raises(UnsupportedPolicy, match="'groot' continues chunks in a way of its own"):
        OrtPolicy(exported.bundle, chunking=RealTimeChunking())
    assert exported.bundle.recorded.continued is None


@pytest.mark.long
def test_pictures_are_prepared_bit_for_bit(exported):
    loaded, raw = exported.loaded, exported.raw
    packs = packing(loaded, picture_sizes(exported.bundle.spec, {}))
    pictures = [torch.from_numpy(raw[key][:, -1]).movedim(-1, 1).float() / 255 for key in packs.cameras]
    found = [
        patches_of([one], how, packs.patching) for one, how in zip(pictures, packs.framings, strict=True)
    ]
    assert torch.equal(torch.cat(found), exported.data.batch["pixel_values"])


@pytest.mark.parametrize(("before", "after"), [(57, 64), (64, 57), (480, 256), (50, 99), (64, 64)])
def test_a_side_is_resized_as_by_torchvision(before, after):
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 9, before), np.uint8))
    bicubic = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    wanted = vision.resize(picture, [9, after], **bicubic)
    assert torch.equal(Resizing(before, after)(picture.double()), wanted.double())


STATISTICS = {"min": [0.0, -1.0, 2.0], "max": [1.0, 1.0, 4.0]}


def decoding(**changes):
    """groot's step of a checkpoint with statistics of its own, group by group."""
    from lerobot.policies.groot.processor_groot import GrootN17ActionDecodeStep

    groups = {"arm": {name: STATISTICS[name][:2] for name in STATISTICS}}
    groups["hand"] = {name: STATISTICS[name][2:] for name in STATISTICS}
    settings = {"env_action_dim": 3, "raw_stats": {"action": groups}}
    settings["modality_config"] = {"action": {"modality_keys": ["arm", "hand"], "action_configs": [{}, {}]}}
    return GrootN17ActionDecodeStep(**settings | changes)


def test_groups_of_actions_are_brought_back_as_by_lerobot():
    step = decoding()
    actions = torch.linspace(-1.5, 1.5, 12).view(1, 4, 3)
    wanted = step({"action": actions})["action"]
    np.testing.assert_allclose(restoring(step, 3).restore(actions.numpy()), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_relative_action": True}, "GrootN17ActionDecodeStep makes actions of offsets"),
        ({"action_decode_transform": "libero"}, "transforms them .*libero"),
        (
            {"raw_stats": {"action": {"arm": {"min": [0.0, 1, 2], "max": [1.0, 1, 4]}}}},
            "holds number 1 of an action still",
        ),
    ],
)
def test_what_is_no_range_of_each_number_is_refused(change, told):
    with pytest.raises(UnsupportedPolicy, match=told):
        restoring(decoding(**change), 3)


@pytest.mark.parametrize(
    ("name", "told"), [("use_bf16", "graphs are made of float32"), ("use_relative_actions", "whole chunks")]
)
def test_what_a_graph_of_float32_targets_is_not_is_refused(name, told):
    loaded = load_policy(saved("groot"))
    setattr(loaded.policy.config, name, True)
    with pytest.raises(UnsupportedPolicy, match=f"{name}.*{told}"):
        read_processors(loaded)


def test_pictures_that_are_resized_by_opencv_are_refused():
    loaded = load_policy(saved("groot"))
    step = next(step for step in loaded.preprocess.steps if hasattr(step, "use_albumentations"))
    step.use_albumentations = True
    with pytest.raises(UnsupportedPolicy, match="resizes pictures by OpenCV"):
        read_processors(loaded)


def test_numbers_outside_are_cut_both_ways():
    one = Normalization(np.zeros(2, np.float32), np.full(2, 2, np.float32), 2.0, -1.0, clips=True)
    np.testing.assert_array_equal(one.normalize(np.array([-5.0, 1.5])), [-1.0, 0.5])
    np.testing.assert_array_equal(one.restore(np.array([3.0, 0.5])), [2.0, 1.5])
