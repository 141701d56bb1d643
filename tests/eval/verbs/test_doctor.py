"""`vivace doctor` passes on what is shipped, and names what does not."""

import json

import pytest

from vivace.eval.cli import main
from vivace.eval.verbs import doctor
from vivace.policies.checkpoint.find import ZOO

pytestmark = pytest.mark.sim


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.long
def test_everything_that_is_shipped_passes(capsys):
    assert main(["doctor"]) == 0
    checks = last_line(capsys)["checks"]
    names = {f"zoo/{config.parent.name}" for config in ZOO.glob("*/config.json")}
    assert set(checks) == {"simulator", "rendering", "gpu", *names}
    for part in ("lerobot's own path within 0 on", "; plan"):
        assert all(part in checks[name] for name in names), checks


def test_a_check_that_fails_is_named_and_exit_code_1(capsys, monkeypatch):
    def broken(name):
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(doctor, "_checkpoint", broken)
    assert main(["doctor"]) == 1
    checks = last_line(capsys)["checks"]
    assert checks["zoo/reach"] == "failed: RuntimeError: reach is broken"
    assert not checks["simulator"].startswith("failed")


def test_no_opengl_is_a_failed_check_and_the_rest_goes_on(capsys, monkeypatch):
    """D10: whatever kind of error OpenGL's bindings die of."""

    def die(self):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr("vivace.envs.metaworld.camera.Camera._renderer", die)
    monkeypatch.setattr(doctor, "_checkpoint", lambda name: "fine")
    assert main(["doctor"]) == 1
    told = capsys.readouterr()
    checks = json.loads(told.out.strip().splitlines()[-1])["checks"]
    assert checks["rendering"].startswith("failed: no picture can be drawn with MUJOCO_GL=")
    assert "apt-get install lib" in checks["rendering"]
    assert not checks["simulator"].startswith("failed")
    assert "Traceback" not in told.err


def test_a_check_that_dies_of_anything_is_a_failed_check(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_simulator", lambda: {}["[x]"])
    monkeypatch.setattr(doctor, "_rendering", lambda: "fine")
    monkeypatch.setattr(doctor, "_checkpoint", lambda name: "fine")
    assert main(["doctor"]) == 1
    assert last_line(capsys)["checks"]["simulator"] == "failed: KeyError: '[x]'"
