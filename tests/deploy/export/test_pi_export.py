"""pi0 and pi05 as bundles: from raw observations to the robot's units, the prompt written on the robot."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot_itself import LeRobot, moments
from lerobot_policies import TASK, saved

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.checks import check_prompts
from vivace.deploy.bundle.form import MASK, TOKENS
from vivace.deploy.export.export import export
from vivace.deploy.export.processors import read_processors
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.errors import BadBundle, UnsupportedPolicy
from vivace.policies.load import load_policy
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS

KEYS = ((11, 0), (12, 0))
PLAN = [
    ("dead_work", {}),
    ("hoist", {}),
    ("vision_merge", {}),
    ("block_cache", {"method": "uniform", "updates": 2}),
]
OTHER = "open the_drawer\nslowly"
"""An instruction that is told later than at export."""


def raw(spec, rows=2):
    return {key: value[:, None] for key, value in moments(spec, rows)[0].items()}


@pytest.fixture(scope="module", params=[pytest.param("pi0", marks=pytest.mark.long), "pi05"])
def exported(request, tmp_path_factory):
    """A checkpoint with an empty camera, its plan, and the bundle of it."""
    checkpoint = saved(request.param, empty_cameras=1)
    loaded = load_policy(checkpoint)
    seen = raw(loaded.staged.spec)
    data = CalibrationData(Session(loaded, task=TASK).prepare(seen), KEYS, raw=seen)
    fitted = replace(data, noise_keys=((1, 0), (2, 0)))
    plan = calibrate(loaded.staged, loaded.fingerprint, fitted, PLAN)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export(loaded, plan, data, folder, [TASK])
    execution = accelerate(loaded.staged, plan, loaded.fingerprint)
    return SimpleNamespace(
        checkpoint=checkpoint, loaded=loaded, execution=execution, folder=folder, seen=seen
    )


@pytest.mark.long
@pytest.mark.shows("export", by="exported")
@pytest.mark.parametrize("task", [TASK, OTHER])
def test_a_bundle_acts_as_torch_does(exported, task):
    """Whole prompts there, without padding and the camera that nobody has here."""
    policy = OrtPolicy(exported.folder, task=task)
    session = Session(exported.loaded, exported.execution, task=task)
    found, wanted = (it.predict(exported.seen, KEYS) for it in (policy, session))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1
    assert policy.bundle.receipt["chunk_error"] <= 1e-5
    assert policy.bundle.receipt["lerobot_error"] <= 1e-4


@pytest.mark.long
def test_a_bundle_continues_chunks_as_torch_does(exported):
    chunking = RealTimeChunking()
    policy = OrtPolicy(exported.folder, task=TASK, chunking=chunking)
    session = Session(exported.loaded, exported.execution, TASK, chunking)
    before = session.predict(exported.seen, KEYS)[:, 2:]
    told = exported.seen | {PREVIOUS: before, DELAY: np.array([1, 2])}
    found, wanted = (it.predict(told, KEYS) for it in (policy, session))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", [TASK, OTHER])
def test_prompts_are_written_as_by_lerobot(exported, task):
    """Of states inside and outside of what training saw."""
    policy, theirs = (
        OrtPolicy(exported.folder, task=task, plausible_spans=np.inf),
        LeRobot(exported.checkpoint),
    )
    told = set()
    for shift in (-9.0, 0.0, 1.3, 9.0):
        seen = {key: value[:1] for key, value in exported.seen.items()}
        seen["observation.state"] = seen["observation.state"] + np.float32(shift)
        ready = policy.prepare(seen)
        wanted = theirs.ready({key: value[:, 0] for key, value in seen.items()}, task)
        for name in (TOKENS, MASK):
            np.testing.assert_array_equal(ready[name], wanted[name].numpy())
        told.add(ready[TOKENS].tobytes())
    assert len(told) == (4 if exported.loaded.staged.spec.type == "pi05" else 1)


def test_a_manifest_that_tells_another_state_is_refused(exported):
    bundle = Bundle.load(exported.folder)
    assert (bundle.prompt.state == "observation.state") == (bundle.spec.type == "pi05")
    for changes in ({"state": "observation.mood"}, {"template": "{instruction} {state} {state}"}):
        with pytest.raises(
            BadBundle, match=r"mood.*a tokenizer, and one of|the template .* once and no other"
        ):
            check_prompts(replace(bundle, prompt=replace(bundle.prompt, **changes)))


def test_a_state_that_is_told_before_it_is_normalised_is_refused():
    loaded = load_policy(Path(saved("pi05")))
    steps = loaded.preprocess.steps
    loaded.preprocess.steps = [*steps[:3], steps[4], steps[3], *steps[5:]]
    with pytest.raises(UnsupportedPolicy, match="must come behind the normaliser, whose state"):
        read_processors(loaded)
