"""`vivace run` with a robot in a process of its own, killed and ended; nothing is faked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded_robot import acts, told

SUPPORT = Path(__file__).parents[2] / "support"

pytestmark = pytest.mark.sim


@pytest.fixture
def drive(bundle, tmp_path):
    running = []

    def start(*flags):
        asked = [sys.executable, "-m", "vivace.eval.cli", "run", f"--bundle={bundle}",
                 f"--output_dir={tmp_path / 'out'}", "--robot.type=recorded_robot:Arm",
                 f"--robot.options={{folder: {tmp_path}}}", "--inference.threads=1", "--control_hz=20",
                 *flags]  # fmt: skip
        paths = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
        running.append(
            subprocess.Popen(asked, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def until(condition, patience_s=240.0):
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_a_killed_run_leaves_its_robot_at_rest_and_closed(drive, tmp_path):
    process = drive()
    until(lambda: (tmp_path / "told").exists() and len(acts(tmp_path)) > 20)
    process.send_signal(signal.SIGKILL)
    until(lambda: told(tmp_path)[-1][1] == "closed")
    last = [numbers for _, _, numbers in acts(tmp_path)[-6:]]
    assert [numbers[:3] for numbers in last[1:]] == [[0.0] * 3] * 5, "displacements"
    assert {numbers[3] for numbers in last} == {last[0][3]}, "a target"


def test_a_run_that_ends_says_what_its_switch_did(drive, tmp_path):
    process = drive("--duration_s=2", "--deadman.floor_s=30", "--deadman.stall_s=30")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert json.loads(out.splitlines()[-1])["ticks"] == found["run"]["ticks"] > 0
    assert found["deadman"] == {"limit_s": 30.0, "sharing": "shared", "fired": 0, "restarts": 0}
    assert told(tmp_path)[-1][1] == "closed"
    assert acts(tmp_path)[-1][2][:3] == [0.0] * 3


def test_a_robot_that_is_nowhere_is_one_line(drive, tmp_path):
    process = drive("--robot.type=recorded_robot:Leg")
    assert process.communicate(timeout=300)[0] == ""
    assert process.returncode == 2
