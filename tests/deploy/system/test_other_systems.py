"""The robot side imports and works where Windows or macOS lack what Linux has; both are emulated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "support"
SYSTEMS = ("win32", "darwin")
ALSO = (
    "vivace.deploy.robots.lerobot",
    "vivace.eval.cli",
    "vivace.eval.verbs.run",
    "vivace.eval.live.settings",
)
"""What `vivace run` needs besides."""
WORK = """
import time
import numpy as np
from vivace.deploy.loop.clock import WallClock
from vivace.deploy.loop.guard import ActionGuard
from vivace.deploy.loop.loop import build_loop
from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.inference.ort_graph import share_threads
from vivace.deploy.workers.process_worker import ProcessWorker
from vivace.deploy.system.realtime import RealtimeSettings, realtime
from vivace.policies.spec import ActionKind, Observation, PolicySpec
from fake_inference import Fake

share_threads(1)
SHAPES = {"observation.state": (3,), "observation.images.front": (3, 4, 5)}
SPEC = PolicySpec(type="fake", action_dim=2, horizon=4, n_obs_steps=2, n_action_steps=2,
                  observation_shapes=SHAPES, action_kinds=(ActionKind.ABSOLUTE,) * 2, blocks=())

class Robot:
    told = []

    def observe(self):
        image = np.ones((4, 5, 3), np.uint8)
        seen = {"observation.state": np.ones(3, np.float32), "observation.images.front": image}
        return Observation(seen, len(self.told), time.monotonic())

    def act(self, action):
        self.told.append(action)

worker = ProcessWorker(Fake, SPEC)
worker.start()
choices = LoopSettings(n_action_steps=2)
loop = build_loop(Robot(), worker, ActionGuard(None), WallClock(), choices, SPEC, control_hz=50.0)
with realtime(RealtimeSettings(fifo_priority=1, lock_memory=True, cpus=(0,), freeze_gc=True)) as grants:
    sources = {loop.tick().source.value for _ in range(50)}
worker.close()
assert "chunk" in sources, sources
told = {grant.what: grant.why for grant in grants if not grant.is_granted}
print(told)
for what in ("SCHED_FIFO 1", "CPUs 0"):
    assert told[what].startswith("this system has no such call"), told
"""


def elsewhere(system: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `other_system.py`, with ASCII for an encoding: Windows has one of its own."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, FOLDER / "other_system.py", *map(str, arguments)]
    return subprocess.run(
        command,
        env={**os.environ, **plain, "SYSTEM": system, **more},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_robot_side_imports_and_its_loop_runs(system, robot_modules):
    imports = "; ".join(f"import {name}" for name in (*robot_modules, *ALSO))
    done = elsewhere(system, imports + WORK)
    assert done.returncode == 0, done.stderr
