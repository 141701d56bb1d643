"""A worker in a process of its own: chunks come, and the loop outlives its death, stalls and errors."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_inference
import numpy as np
import pytest
from fake_inference import SHAPES, Fake, broken

from vivace.deploy.workers.process_worker import ProcessWorker
from vivace.deploy.workers.worker import Request
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, PolicySpec

SPEC = PolicySpec(
    type="fake",
    action_dim=2,
    horizon=4,
    n_obs_steps=2,
    n_action_steps=2,
    observation_shapes={"observation.state": (3,), "observation.images.front": (3, 4, 5)},
    action_kinds=(ActionKind.ABSOLUTE,) * 2,
    blocks=(),
)


def request(tick=0, plan=None, previous=None, task="") -> Request:
    observations = {
        "observation.state": np.ones((2, 3), np.float32),
        "observation.images.front": np.ones((2, 4, 5, 3), np.uint8),
    }
    return Request(observations, tick, time.monotonic(), (0, tick), plan, previous, task)


def wait(worker, until, patience_s=20.0):
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        chunk = worker.poll(time.monotonic())
        if until(chunk):
            return chunk
        time.sleep(0.005)
    raise AssertionError("it never happened")


def is_chunk(chunk) -> bool:
    return chunk is not None


@pytest.fixture
def worker():
    worker = ProcessWorker(Fake, SPEC, stall_s=0.5)
    worker.start()
    yield worker
    worker.close()


def test_what_a_terminal_sends_to_all_its_processes_does_not_reach_inference(worker):
    before = worker.pid
    for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTSTP"):
        os.kill(before, getattr(signal, name))
    worker.submit(request(5))
    wait(worker, is_chunk)
    assert (worker.pid, worker.restarts) == (before, 0)


def test_chunks_come_back(worker):
    assert not worker.is_busy
    worker.submit(request(tick=7))
    assert worker.is_busy
    with pytest.raises(BadSetting, match="while the worker was busy"):
        worker.submit(request(tick=8))
    chunk = wait(worker, is_chunk)
    assert (chunk.tick, chunk.actions.shape) == (7, (3, 2))
    assert (chunk.actions == 6 + 120 + 7).all()
    assert abs(chunk.ready_s - time.monotonic()) < 5, "one clock for both sides"
    assert worker.poll(time.monotonic()) is None
    worker.submit(request(tick=1, previous=np.ones((9, 2), np.float32), task="abc"))
    assert (wait(worker, is_chunk).actions == 6 + 120 + 8 + 3 + 1).all()


def test_an_error_ends_the_request_only(worker):
    worker.submit(request(plan="raise"))
    wait(worker, lambda _: not worker.is_busy)
    assert "tick 0: ValueError: no such thing" in worker.errors[-1]
    worker.submit(request(tick=1))
    assert wait(worker, is_chunk).tick == 1
    assert worker.restarts == 0


FOREIGN = [
    ("observation.state", np.ones((1,), np.float32), r"has shape \(1,\), needed is \(2, 3\)"),
    ("observation.state", np.ones((2, 1), np.float32), r"has shape \(2, 1\), needed is \(2, 3\)"),
    ("observation.state", np.full((2, 3), np.inf), "holds NaN or infinity"),
    ("observation.images.front", np.ones((2, 4, 5, 3)), "is float64; pictures are uint8"),
    ("observation.images.front", np.ones((4, 5, 3), np.uint8), r"has shape \(4, 5, 3\)"),
]


def test_arrays_of_another_form_are_a_failed_request(worker):
    for key, value, message in FOREIGN:
        asked = request(tick=3)
        asked.observations[key] = value
        worker.submit(asked)
        assert not worker.is_busy
        assert re.search(f"tick 3: observation .*{message}", worker.errors[-1])
    for previous in (
        np.ones((3, 1), np.float32),
        np.ones(2, np.float32),
        np.full((3, 2), np.inf, np.float32),
    ):
        worker.submit(request(previous=previous))
        assert not worker.is_busy
        assert "tick 0: 'action.previous'" in worker.errors[-1]
    worker.submit(request(tick=4))
    assert wait(worker, is_chunk).tick == 4


def test_chunks_of_another_form_are_a_failed_request(worker):
    for number, plan in enumerate((*SHAPES, "nan")):
        worker.submit(request(plan=plan))
        wait(worker, lambda chunk: chunk is not None or not worker.is_busy)
        assert len(worker.errors) == number + 1
        assert re.search(r"the chunk (has shape|holds NaN)", worker.errors[-1])
    worker.submit(request(tick=1))
    assert wait(worker, is_chunk).tick == 1
    assert worker.restarts == 0


@pytest.mark.parametrize("end", ["die", "stall", "killed"])
def test_a_dead_or_stalled_process_is_replaced(worker, end):
    before = worker.pid
    worker.submit(request(plan="stall" if end == "killed" else end))
    if end == "killed":
        os.kill(before, signal.SIGKILL)
    slowest = 0.0
    deadline = time.monotonic() + 20
    while worker.is_busy and time.monotonic() < deadline:
        began = time.monotonic()
        assert worker.poll(began) is None
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.002)
    assert worker.restarts == 1
    assert worker.pid != before
    assert slowest < 1.0, "polling must not wait for the new process"
    worker.submit(request(tick=3))
    assert wait(worker, is_chunk).tick == 3


def test_a_policy_that_does_not_load_is_said():
    worker = ProcessWorker(broken, SPEC)
    with pytest.raises(BadSetting, match="could not load the policy: OSError: nothing there"):
        worker.start()
    with pytest.raises(BadSetting, match="stall_s=0"):
        ProcessWorker(Fake, SPEC, stall_s=0)


def test_a_process_that_dies_at_every_request_is_started_more_and_more_slowly(worker):
    pauses = []
    worker._is_closed.wait = lambda pause_s: pauses.append(pause_s)
    for tick in range(3):
        worker.submit(request(tick, plan="die"))
        wait(worker, lambda _: not worker.is_busy)
    assert pauses == pytest.approx([0.0, 0.1, 0.3])
    worker.submit(request(tick=3))
    wait(worker, is_chunk)
    worker.submit(request(tick=4, plan="die"))
    wait(worker, lambda _: not worker.is_busy)
    assert pauses[3] == 0.0, "a chunk came in between"
    assert worker.restarts == 4


def test_only_the_last_errors_are_remembered(worker):
    for number in range(150):
        worker._note(f"error {number}")
    assert worker.errors == [f"error {number}" for number in range(50, 150)]


def test_a_process_whose_loop_was_killed_ends_without_a_word():
    code = f"""
import os, signal, sys, time
sys.path[:0] = {[str(Path(__file__).parent), str(Path(fake_inference.__file__).parent)]!r}
from test_process_worker import Fake, ProcessWorker, SPEC, request
if __name__ == "__main__":
    worker = ProcessWorker(Fake, SPEC, stall_s=5)
    worker.start()
    print(worker.pid, flush=True)
    worker.submit(request(plan="slow"))
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert "Traceback" not in done.stderr, "the output is closed once the inference process has ended too"
