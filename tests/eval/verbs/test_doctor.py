"""`vivace doctor` passes on what is shipped, and names what does not."""

import json

import pytest

from vivace.eval.cli import main
from vivace.eval.verbs import doctor
from vivace.policies.checkpoint.find import ZOO

pytestmark = pytest.mark.sim


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_everything_that_is_shipped_passes(capsys):
    assert main(["doctor"]) == 0
    checks = last_line(capsys)["checks"]
    names = {f"zoo/{config.parent.name}" for config in ZOO.glob("*/config.json")}
    assert set(checks) == {"simulator", "rendering", "gpu", *names}
    for part in ("bit-equal to its own sampling, lerobot's own path within", "; plan"):
        assert all(part in checks[name] for name in names), checks


def test_a_check_that_fails_is_named_and_exit_code_1(capsys, monkeypatch):
    def broken(name):
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(doctor, "_checkpoint", broken)
    assert main(["doctor"]) == 1
    checks = last_line(capsys)["checks"]
    assert checks["zoo/reach"] == "failed: reach is broken"
    assert not checks["simulator"].startswith("failed")
