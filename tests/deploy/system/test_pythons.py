"""The robot side on every Python that robots have, from a wheel that a robot can take."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3]
UNITS = (
    "budget", "chunk_queue", "clock", "deadline", "guard", "histogram", "limits", "loop", "pace",
    "process_worker", "realtime", "registry", "driver", "run_log", "soak", "token_decoding", "watchdog",
)  # fmt: skip
"""Tests of the robot side that need neither torch nor ROS 2."""
SYSTEMS = {
    "aarch64": [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 34, 35)],  # JetPack 6 has glibc 2.35
    "windows": ["win_amd64"],
    "mac": [f"macosx_{major}_0_arm64" for major in (11, 12, 13, 14)],
}
"""Where wheels are looked for -> what pip calls it."""


def test_the_wheel_holds_no_checkpoint_and_is_small(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "vivace/deploy/loop/loop.py" in names
    assert "vivace/policies/py.typed" in names
    assert not [name for name in names if "zoo" in name or name.endswith((".safetensors", ".onnx", ".bin"))]
    assert wheel.stat().st_size < 2e6


def test_what_a_robot_runs_imports_on_its_python(robots_python, robot_modules):
    """C8."""
    done = robots_python.run("-I", "-c", "; ".join(f"import {name}" for name in robot_modules))
    assert done.returncode == 0, done.stderr
    helped = robots_python.run("-I", "-m", "vivace.deploy.ros2.node", "--help")
    assert helped.stdout.startswith("usage: vivace-ros"), helped.stderr
    for verb in ("run", "eval"):
        refused = robots_python.run("-I", "-m", "vivace.eval.cli", verb)
        assert refused.returncode == 2
        assert re.match(rf"vivace {verb}: no package '(draccus|rich|torch)'", refused.stderr)
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.every_python
@pytest.mark.parametrize("unit", UNITS)
def test_units_pass_on_this_python(equipped, unit):
    asked = (
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(SOURCE / "tests" / "deploy").rglob(f"test_{unit}.py"),
    )
    done = equipped.run(*asked, cwd=SOURCE)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.every_python
@pytest.mark.parametrize("system", SYSTEMS)
def test_there_are_wheels_for_every_python(system, numpy_of, tmp_path):
    """Asks the package index by the names of wheels; nothing is downloaded or installed."""
    report = tmp_path / "report.json"
    for python, numpy in numpy_of.items():
        where = [f"--platform={name}" for name in SYSTEMS[system]] + [f"--python-version={python}"]
        asked = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", f"--report={report}"]
        asked += [f"--target={tmp_path / 'none'}", *where, f"numpy=={numpy}", "onnxruntime>=1.23"]
        subprocess.run([sys.executable, "-m", "pip", "--quiet", "install", *asked], check=True)
        found = [entry["metadata"]["name"] for entry in json.loads(report.read_text())["install"]]
        assert sorted(found) == ["numpy", "onnxruntime"]
