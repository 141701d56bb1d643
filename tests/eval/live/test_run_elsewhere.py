"""`vivace run` with a simulation on an emulated Windows; see tests/support/other_system.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "support" / "other_system.py"
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
"""No UTF-8 unless we ask for it: Windows has an encoding of its own."""


@pytest.mark.long
@pytest.mark.sim
def test_a_simulation_runs_on_another_system(bundle, tmp_path):
    asked = (
        "--robot.task=reach-moving",
        "--control_hz=20",
        "--duration_s=1",
        "--inference.threads=1",
        "--draw=true",
    )
    command = [sys.executable, SCRIPT, "run", f"--bundle={bundle}", f"--output_dir={tmp_path}", *asked]
    surroundings = {**os.environ, **PLAIN, "SYSTEM": "win32", "MUJOCO_GL": "egl"}  # what renders here
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["run"]["sources"]["chunk"] > 0
    assert (tmp_path / "report.html").is_file()
