"""The robot side imports on a machine that has numpy only."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3]
HEAVY = (
    "torch",
    "lerobot",
    "gymnasium",
    "mujoco",
    "diffusers",
    "transformers",
    "draccus",
    "rich",
    "scipy",
    "yaml",
    "rerun",
)


@pytest.mark.parametrize("package", ["vivace.policies", "vivace.accel", "vivace.deploy", "vivace.eval"])
def test_packages_load_nothing_by_themselves(package):
    _run(f"import {package}; assert dir({package})")


def test_the_control_loop_needs_numpy_only(robot_modules):
    _run("; ".join(f"import {module}" for module in (*robot_modules, "vivace.deploy.robots.lerobot")))
    _run("from vivace.deploy import ControlLoop, LatencyBudget; from vivace.policies import Observation")


def test_the_verb_that_drives_a_robot_needs_little_more():
    _run(
        "import vivace.eval.cli, vivace.eval.verbs.run, vivace.eval.live.settings, vivace.eval.verbs.check",
        needed=("draccus", "rich", "yaml"),
    )


def test_all_that_a_robot_loads_is_held_to_its_python(robot_modules):
    """`make check` looks into whole folders, and into the policies' files that are named for it."""
    loads = "; ".join(
        f"import {module}" for module in (*robot_modules, "vivace.eval.cli", "vivace.eval.verbs.run")
    )
    told = _run(f"{loads}; print(*sys.modules)", needed=("draccus", "rich", "yaml"))
    found = {name.replace(".", "/") for name in re.findall(r"vivace\.policies\.([\w.]+)", told)} - {
        "sampling"
    }
    held = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["ruff"]["per-file-target-version"]
    named = set(re.search(r"policies/{(.*?)}\.py", " ".join(held))[1].split(","))
    assert found <= named
    assert not {name for name in re.findall(r"vivace\.(\w+)\.", told)} - {
        "policies",
        "deploy",
        "envs",
        "eval",
    }
    makefile = (SOURCE / "Makefile").read_text()
    assert named == set(re.search(r"policies/%\.py,(.*?)\)", makefile.replace("\\\n", ""))[1].split())


def test_usage_is_printed_without_torch_whatever_the_terminal_can_write():
    told = _run(
        "from vivace.eval.cli import main; assert main(['--help']) == 0",
        needed=("draccus", "rich", "yaml"),
        PYTHONIOENCODING="ascii",
    )
    assert re.search(r"^  run +Drive a robot", told, re.MULTILINE)
    assert re.search(r"^  train +Train a ", told, re.MULTILINE)


def _run(code: str, needed: tuple[str, ...] = (), **surroundings: str) -> str:
    absent = (
        "import sys; "
        + "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY if name not in needed)
        + "; "
    )
    command, environment = [sys.executable, "-c", absent + code], {**os.environ, **surroundings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
