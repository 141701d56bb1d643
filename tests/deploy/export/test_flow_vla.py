"""A staged flow VLA as a bundle: from raw observations to actions in the robot's units, as in torch."""

import numpy as np
import pytest
from lerobot_itself import moments
from lerobot_policies import TASK, saved

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.form import TOKENS
from vivace.deploy.export.export import export
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval.measure.action_error import sample_all
from vivace.eval.measure.bundle_rows import BundleRun
from vivace.policies.errors import BadSetting
from vivace.policies.load import load_policy
from vivace.policies.session import Session

PLANS = {
    "as trained": [],
    "exact, cached": [("dead_work", {}), ("hoist", {}), ("block_cache", {"method": "uniform", "updates": 2})],
    "patches": [
        ("vision_merge", {}),
        ("patch_select", {"k_final": 8, "layer": 0, "early": "again"}),
        ("step_schedule", {"sampler": "euler", "n_steps": 2}),
        ("hoist", {}),
    ],
}


@pytest.mark.long
def test_prompts_are_as_long_as_they_are_asked_for(tmp_path):
    """What is left out is padding: the chunks are the same, and longer instructions are refused."""
    loaded = load_policy(saved("smolvla"))
    session = Session(loaded, task=TASK)
    raw = {key: value[:, None] for key, value in moments(session.spec)[0].items()}
    data = CalibrationData(session.prepare(raw), ((5, 0),), raw=raw)
    plan = AccelerationPlan(loaded.fingerprint)
    with pytest.raises(BadSetting, match=r"prompt_tokens=2; of .* makes up to \d+ tokens"):
        export(loaded, plan, data, tmp_path / "none", [TASK], prompt_tokens=2)
    bundle = export(loaded, plan, data, tmp_path / "bundle", [TASK], prompt_tokens=32)
    assert bundle.graphs[0].inputs[TOKENS] == (1, 32)
    policy = OrtPolicy(bundle, task=TASK)
    np.testing.assert_allclose(*(it.predict(raw, [(3, 0)]) for it in (policy, session)), rtol=0, atol=1e-4)
    policy.task = "put the red cube on the plate and then the other one on the table beside it"
    with pytest.raises(BadSetting, match="this policy reads at most 32; shorten it"):
        policy.predict(raw, [(3, 0)])


@pytest.mark.long
@pytest.mark.shows("export", of="smolvla")
@pytest.mark.parametrize("wanted", PLANS.values(), ids=PLANS)
def test_it_acts_as_in_torch_whatever_it_is_told(wanted, tmp_path):
    """Prompts are as long as they may be there; lerobot pads to the longest of a batch."""
    loaded = load_policy(saved("smolvla", empty_cameras=1, pad_language_to="longest"))
    session = Session(loaded, task=TASK)
    raw = {key: value[:, None] for key, value in moments(session.spec)[0].items()}
    data = CalibrationData(session.prepare(raw), ((5, 0),), raw=raw)
    fitted = CalibrationData(data.batch, ((1, 0),))
    plan = calibrate(loaded.staged, loaded.fingerprint, fitted, wanted)
    bundle = export(loaded, plan, data, tmp_path / "bundle", [TASK])
    assert {graph.origin.part for graph in bundle.graphs} == {"encode", "step", "finish"}
    assert bundle.prompt.length == loaded.policy.config.tokenizer_max_length
    assert bundle.receipt["chunk_error"] <= 1e-5
    session = Session(loaded, accelerate(loaded.staged, plan))
    policy = OrtPolicy(bundle)
    for task in (TASK, "Pick it up and put it into the box"):
        session.task = policy.task = task
        found, wanted_chunk = (it.predict(raw, [(3, 0)]) for it in (policy, session))
        np.testing.assert_allclose(found, wanted_chunk, rtol=0, atol=1e-4)


@pytest.mark.long
def test_bench_compares_it_though_its_prompts_are_longer_than_lerobots(tmp_path, monkeypatch):
    """A bundle's prompts have one length, lerobot's that of the longest of a batch."""
    monkeypatch.setattr(BundleRun, "cold_start_s", lambda _, chunk_s: 0.0)
    loaded = load_policy(saved("smolvla", pad_language_to="longest"))
    raw = {key: value[:, None] for key, value in moments(loaded.staged.spec)[0].items()}
    data = CalibrationData(Session(loaded, task=TASK).prepare(raw), ((5, 0),), raw=raw | {"task": [TASK]})
    export(loaded, AccelerationPlan(loaded.fingerprint), data, tmp_path / "bundle", [TASK])
    run = BundleRun(str(tmp_path / "bundle"), loaded, 1)
    assert data.batch[TOKENS].shape[1] < run.policy.bundle.prompt.length
    run(data)
    row = run.row({"plain": [1.0], run.name: [0.5]}, sample_all(loaded.as_trained, data), data)
    assert row["action_error"] <= 1e-5
