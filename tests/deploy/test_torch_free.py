"""The robot side imports on a machine that has numpy only."""

import subprocess
import sys

import pytest

MODULES = [
    "vivace.policies.types", "vivace.policies.errors", "vivace.deploy.clock", "vivace.deploy.budget",
    "vivace.deploy.chunk_queue", "vivace.deploy.guard", "vivace.deploy.worker", "vivace.deploy.loop",
    "vivace.policies.step_table", "vivace.policies.streams", "vivace.deploy.normalization",
    "vivace.policies.arrays", "vivace.policies.plain_data", "vivace.deploy.bundle_checks",
    "vivace.deploy.golden", "vivace.deploy.onnx_file", "vivace.deploy.recording", "vivace.deploy.signature",
    "vivace.deploy.bundle", "vivace.deploy.ort_policy", "vivace.deploy.process_worker",
    "vivace.deploy.histogram", "vivace.deploy.limits", "vivace.deploy.loop_statistics",
    "vivace.deploy.realtime", "vivace.deploy.rerun_stream", "vivace.deploy.robots",
    "vivace.deploy.run_log", "vivace.deploy.watchdog", "vivace.deploy.lerobot_robot",
    "vivace.deploy.interrupts", "vivace.deploy.patient_robot", "vivace.deploy.standstill",
    "vivace.deploy.warm_up",
    "vivace.deploy.robot_access", "vivace.deploy.robot_process", "vivace.deploy.robot_server",
]  # fmt: skip
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


def test_the_control_loop_needs_numpy_only():
    _run("; ".join(f"import {module}" for module in MODULES))
    _run("from vivace.deploy import ControlLoop, LatencyBudget; from vivace.policies import Observation")


def test_the_verb_that_drives_a_robot_needs_little_more():
    _run(
        "import vivace.eval.cli, vivace.eval.run, vivace.eval.run_settings, vivace.eval.check",
        needed=("draccus", "rich", "yaml"),
    )


def _run(code: str, needed: tuple[str, ...] = ()) -> None:
    absent = (
        "import sys; "
        + "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY if name not in needed)
        + "; "
    )
    done = subprocess.run([sys.executable, "-c", absent + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
