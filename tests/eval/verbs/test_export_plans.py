"""`vivace export` of several plans, and into a bundle: what is asked for, and what cannot be."""

from types import SimpleNamespace

import pytest

from vivace.accel.plan import AccelerationPlan
from vivace.eval.verbs.export import ExportCommand, _folder, _plans
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.spec import Fingerprint

MARK = Fingerprint("dp_transformer", "c", "w", "p", ("action.0.mlp",))


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "policy").mkdir()
    for folder in ("policy", "fast", "slow"):
        (tmp_path / folder).mkdir(exist_ok=True)
        AccelerationPlan(MARK, (), {"from": folder}).save(tmp_path / folder)
    AccelerationPlan(MARK, (), {"from": "file"}).save(tmp_path / "other.json")
    return SimpleNamespace(dtype="float32", path=tmp_path / "policy", fingerprint=MARK)


def asked(**export) -> ExportCommand:
    command = ExportCommand()
    command.accel.path = export.pop("path", None)
    command.output_dir = export.pop("output_dir", None)
    for name, value in export.items():
        setattr(command.export, name, value)
    return command


def test_plans_are_called_by_their_folders(loaded, tmp_path):
    places = ["own", "plain", str(tmp_path / "fast"), str(tmp_path / "slow" / "acceleration.json")]
    found = _plans(asked(plans=[*places, str(tmp_path / "other.json")]), loaded)
    assert list(found) == ["own", "plain", "fast", "slow", "other"]
    told = [plan.measurements.get("from") for plan in found.values()]
    assert told == ["policy", None, "fast", "slow", "file"]
    assert list(_plans(asked(), loaded)) == ["own"]
    assert list(_plans(asked(plan=False), loaded)) == ["plain"]
    assert list(_plans(asked(path=str(tmp_path / "fast")), loaded)) == ["fast"]


def test_plans_that_cannot_be_told_apart_are_refused(loaded, tmp_path):
    (tmp_path / "more" / "fast").mkdir(parents=True)
    AccelerationPlan(MARK).save(tmp_path / "more" / "fast")
    places = [str(tmp_path / "fast"), str(tmp_path / "more" / "fast")]
    with pytest.raises(BadSetting, match="names 'fast' twice; a plan is called by its folder"):
        _plans(asked(plans=places), loaded)
    with pytest.raises(BadSetting, match="one plan by --accel.path or several by --export.plans, not both"):
        _plans(asked(plans=["own"], path=places[0]), loaded)
    other = SimpleNamespace(
        dtype="float32", path=loaded.path, fingerprint=Fingerprint("cogact", "c", "w", "p", ())
    )
    with pytest.raises(PlanMismatch, match="calibrated for 'dp_transformer'"):
        _plans(asked(plans=["own"]), other)


def test_a_bundle_is_made_or_added_to(tmp_path):
    assert _folder(asked(into=str(tmp_path))) == tmp_path
    assert _folder(asked(output_dir=str(tmp_path / "new"))) == tmp_path / "new"
    with pytest.raises(BadSetting, match="--output_dir for a new bundle or --export.into, not both"):
        _folder(asked(into=str(tmp_path), output_dir=str(tmp_path)))
    with pytest.raises(BadSetting, match="needs --output_dir"):
        _folder(asked())
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(BadSetting, match="holds something that is no bundle"):
        _folder(asked(output_dir=str(tmp_path)))
