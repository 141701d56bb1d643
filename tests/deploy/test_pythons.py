"""The robot side on every Python that robots have, from a wheel that a robot can take."""

import re
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
UNITS = (
    "budget", "chunk_queue", "clock", "deadline", "guard", "histogram", "limits", "loop", "pace",
    "process_worker", "realtime", "robots", "ros2_driver", "run_log", "soak", "token_decoding", "watchdog",
)  # fmt: skip
"""Tests of the robot side that need neither torch nor ROS 2."""


def test_the_wheel_holds_no_checkpoint_and_is_small(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "vivace/deploy/loop.py" in names
    assert "vivace/deploy/ros2_example.yaml" in names
    assert "vivace/policies/py.typed" in names
    assert not [name for name in names if "zoo" in name or name.endswith((".safetensors", ".onnx", ".bin"))]
    assert wheel.stat().st_size < 2e6


def test_what_a_robot_runs_imports_on_its_python(robots_python, robot_modules):
    done = robots_python.run("-I", "-c", "; ".join(f"import {name}" for name in robot_modules))
    assert done.returncode == 0, done.stderr
    helped = robots_python.run("-I", "-m", "vivace.deploy.ros2_node", "--help")
    assert helped.stdout.startswith("usage: vivace-ros"), helped.stderr
    helped = robots_python.run("-I", "-m", "vivace.eval.cli", "--help")
    assert re.search(r"^  run +Drive a robot", helped.stdout, re.MULTILINE), helped.stderr
    assert re.search(r"^  train +Needs pip install 'vivace\[all\]'", helped.stdout, re.MULTILINE)
    for verb, needed in (("run", "draccus"), ("eval", "draccus"), ("train", "draccus")):
        refused = robots_python.run("-I", "-m", "vivace.eval.cli", verb)
        assert refused.returncode == 2
        assert f"vivace {verb}: no package '{needed}'" in refused.stderr
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
        SOURCE / "tests" / "deploy" / f"test_{unit}.py",
    )
    done = equipped.run(*asked, cwd=SOURCE)
    assert done.returncode == 0, done.stdout[-4000:]
