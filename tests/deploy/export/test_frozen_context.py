"""A bundle of a joint denoiser whose context is frozen: its keys and values go from step to step."""

import numpy as np
import pytest
import torch
from lerobot_itself import moments
from lerobot_policies import TASK, saved

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.program import cached
from vivace.deploy.export.export import export
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.load import load_policy
from vivace.policies.session import Session

KEYS = [(5, 0)]


@pytest.fixture(scope="module")
def subject():
    loaded = load_policy(saved("xvla"))
    session = Session(loaded, task=TASK)
    raw = {key: value[:, None] for key, value in moments(loaded.staged.spec)[0].items()}
    return loaded, raw, CalibrationData(session.prepare(raw), ((5, 0),), raw=raw)


@pytest.mark.long
@pytest.mark.shows("export", of="xvla")
def test_a_bundle_freezes_the_context_as_torch_does(subject, tmp_path):
    loaded, raw, data = subject
    other = CalibrationData(data.batch, ((6, 0),))
    frozen = [("context_freeze", {"full_steps": 1}), ("dead_work", {}), ("hoist", {})]
    plan = calibrate(loaded.staged, loaded.fingerprint, other, frozen)
    bundle = export(loaded, plan, data, tmp_path / "bundle", instructions=[TASK])
    found = OrtPolicy(bundle, task=TASK).predict(raw, KEYS)
    wanted = Session(loaded, accelerate(loaded.staged, plan), TASK).predict(raw, KEYS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(found - Session(loaded, task=TASK).predict(raw, KEYS)).max() > 1e-4
    assert bundle.program.receipt["chunk_error"] <= 1e-5
    first, *others = bundle.program.steps
    keeps, alone = (bundle.graphs[step.graph] for step in (first, others[0]))
    assert {step.graph for step in others} == {others[0].graph} != {first.graph}
    context = 65 + 16 + 65 + 4
    for name in ("kept.0", "kept.1"):
        assert keeps.outputs[f"new.{name}"] == alone.inputs[cached(name, 1)[0]] == (1, context, 64)
        assert all(step.weights[name] == (1.0,) for step in others)


@pytest.mark.long
def test_the_domain_of_the_checkpoint_is_the_bundles(subject, tmp_path):
    """What its processors tell the policy is part of the graph."""
    loaded, raw, data = subject
    for step in loaded.preprocess.steps:
        if hasattr(step, "domain_id"):
            step.domain_id = 2
    session = Session(loaded, task=TASK)
    there = CalibrationData(session.prepare(raw), ((5, 0),), raw=raw)
    assert torch.equal(there.batch["domain_id"], torch.tensor([2]))
    plan = AccelerationPlan(loaded.fingerprint)
    export(loaded, plan, there, tmp_path / "bundle", instructions=[TASK])
    found = OrtPolicy(Bundle.load(tmp_path / "bundle"), task=TASK).predict(raw, KEYS)
    np.testing.assert_allclose(found, session.predict(raw, KEYS), rtol=0, atol=1e-4)
