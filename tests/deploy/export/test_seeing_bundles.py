"""VLAs that look at every second chunk, as bundles: the state is felt at each, as in torch."""

import numpy as np
import pytest
from lerobot_itself import moments
from lerobot_policies import TASK, saved

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.deploy.export.export import check_exportable, export
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.carry import FOLLOWED
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.load import load_policy
from vivace.policies.session import Session


@pytest.mark.long
@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_a_bundle_looks_and_feels_as_torch_does(kind, tmp_path):
    loaded = load_policy(saved(kind))
    session = Session(loaded, task=TASK)
    raw = {key: value[:, None] for key, value in moments(session.spec, 2)[0].items()}
    first, second = ({key: value[row : row + 1] for key, value in raw.items()} for row in (0, 1))
    data = CalibrationData(session.prepare(raw), ((5, 0), (6, 0)), raw=raw)
    fitted = CalibrationData(data.batch, ((1, 0), (2, 0)))
    plan = calibrate(loaded.staged, loaded.fingerprint, fitted, [("hoist", {}), ("frame_cache", {})])
    bundle = export(loaded, plan, data, tmp_path / "bundle", [TASK])
    assert {"see", "perceive"} <= {graph.origin.part for graph in bundle.graphs}
    policy, session = (
        OrtPolicy(bundle, task=TASK),
        Session(loaded, accelerate(loaded.staged, plan), task=TASK),
    )
    for seen, before, tick in ((first, -1, 0), (second, 0, 4), (second, 4, 8)):
        asked, key = seen | {FOLLOWED: np.array([[before, 4]])}, [(3, tick)]
        found, wanted = (it.predict(asked, key) for it in (policy, session))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_what_a_bundle_cannot_decide_is_refused_by_name():
    loaded = load_policy(saved("smolvla"))
    session = Session(loaded, task=TASK)
    blank = session.blank()
    camera = loaded.staged.cameras[0]
    for kind, options, why in (
        ("frame_cache", {"cameras": {camera: 1}}, "frame_cache reads cameras at rates of their own"),
        ("static_patches", {}, "static_patches decides by the values it computes"),
    ):
        data = CalibrationData(blank, ((1, 0),))
        plan = calibrate(loaded.staged, loaded.fingerprint, data, [(kind, options)])
        with pytest.raises(UnsupportedPolicy, match=why):
            check_exportable(loaded, {"plan": plan}, blank)
