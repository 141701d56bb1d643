"""Loops that are killed, stopped or blocked at 100 Hz: the robot comes to rest, whatever becomes of them.

A hundred kills:  python -m pytest tests/deploy/deadman/test_dead_loop.py -k reaction --deadman-kills=100 -s
"""

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from processes import is_alive, until
from recorded_robot import PERIOD_S, acts, told

LOOP = Path(__file__).parents[2] / "support" / "silent_loop.py"
REST = [0.0, 0.25]
CALM = "20"
"""Seconds without a tick that a test's healthy loop may take on a machine that does other things."""


class Loop:
    """A process that ticks."""

    def __init__(self, folder, kind="Shared", ticks=10**6, floor_s="0.1", waits=True, **options):
        asked = [sys.executable, str(LOOP), str(folder), kind, str(ticks), floor_s]
        self.process = subprocess.Popen(asked, **({"stdout": subprocess.PIPE, "text": True} | options))
        self.folder = folder
        if waits:
            self.robot_pid = int(self.process.stdout.readline().split()[1])
            self.process.stdout.readline()

    def kill(self, number=signal.SIGKILL):
        killed_s = time.monotonic()
        self.process.send_signal(number)
        return killed_s

    def take_the_usual_priority(self):
        """Whatever the tests run with: a robot is not driven as a background job."""
        for pid in (self.process.pid, self.robot_pid):
            with suppress(AttributeError, PermissionError):
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, pid, 0)

    def is_at_rest(self):
        return acts(self.folder)[-1][2] == REST

    def close(self):
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def loop(tmp_path):
    loops = []

    def start(*args, **options):
        loops.append(Loop(tmp_path, *args, **options))
        return loops[-1]

    yield start
    for made in loops:
        made.close()


def test_a_killed_loops_robot_comes_to_rest_is_closed_and_its_process_ends(loop, tmp_path):
    made = loop()
    made.kill()
    until(lambda: told(tmp_path)[-1][1] == "closed")
    until(lambda: not is_alive(made.robot_pid))
    entries = acts(tmp_path)
    last = max(i for i, (_, _, numbers) in enumerate(entries) if numbers == [0.75, 0.25])
    ramp = [numbers for _, _, numbers in entries[last + 1 :]]
    assert ramp[:5] == [pytest.approx([0.75 * share, 0.25]) for share in (0.8, 0.6, 0.4, 0.2, 0.0)]
    assert ramp[4:] == [REST] * len(ramp[4:])
    assert len(ramp) > 5, "told more than once: a command may be lost"


def test_a_stopped_loops_robot_stands_still_until_the_loop_goes_on(loop, tmp_path):
    made = loop()
    made.kill(signal.SIGSTOP)
    until(made.is_at_rest)
    since = len(acts(tmp_path))
    until(lambda: len(acts(tmp_path)) > since + 10)
    assert [numbers for _, _, numbers in acts(tmp_path)[since:]] == [REST] * (len(acts(tmp_path)) - since)
    made.kill(signal.SIGCONT)
    until(lambda: acts(tmp_path)[-1][2] == [0.75, 0.25])
    made.kill()
    until(lambda: told(tmp_path)[-1][1] == "closed")
    assert acts(tmp_path)[-1][2] == REST


@pytest.mark.parametrize("kind", ["Shared", "Second", "Base"])
def test_a_blocked_observe_leaves_the_robot_at_rest(loop, tmp_path, kind):
    made = loop(kind)
    (tmp_path / "blind").touch()
    until(made.is_at_rest)
    (tmp_path / "blind").unlink()
    until(lambda: acts(tmp_path)[-1][2] == [0.75, 0.25])


def test_a_loop_that_ends_is_no_silent_one_and_neither_is_a_slow_one(loop, tmp_path):
    (tmp_path / "slow").touch()
    made = loop("Base", ticks=40, floor_s=CALM, waits=False)
    out, _ = made.process.communicate(timeout=300)
    assert " 0 0 ['a wheel squeaks']" in out, "never fired"
    assert "failed" not in out
    entries = [numbers for _, _, numbers in acts(tmp_path)]
    assert entries == [[0.75, 0.25]] * (len(entries) - 1) + [REST]
    assert told(tmp_path)[-1][1] == "closed"


@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="there are no such terminals here")
def test_a_terminal_that_nobody_reads_and_that_closes_stops_neither_robot_nor_switch(loop, tmp_path):
    ours, theirs = pty.openpty()
    made = loop("Chatty", waits=False, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    until(lambda: (tmp_path / "told").exists() and len(acts(tmp_path)) > 30)
    os.close(ours)
    made.kill()
    until(lambda: told(tmp_path)[-1][1] == "closed")
    assert acts(tmp_path)[-1][2] == REST


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_reaction_times_over_many_loops(tmp_path, request, number):
    """At rest every time. A loop's death is seen at once, its silence after the limit of 100 ms."""
    loops, first_s, rest_s = request.config.getoption("--deadman-kills"), [], []
    random = np.random.default_rng(0)
    for i in range(loops):
        folder = tmp_path / str(i)
        folder.mkdir()
        made = Loop(folder)
        made.take_the_usual_priority()
        time.sleep(0.3 + random.uniform(0, 5 * PERIOD_S))
        made.kill(number)
        until(made.is_at_rest)
        made.close()
        until(lambda folder=folder: told(folder)[-1][1] == "closed")
        entries = acts(folder)
        last = max(i for i, (_, _, numbers) in enumerate(entries) if numbers == [0.75, 0.25])
        assert entries[-1][2] == REST
        first_s.append(entries[last + 1][0] - entries[last][0])
        rest_s.append(next(t for t, _, numbers in entries[last:] if numbers == REST) - entries[last][0])
    if number == signal.SIGSTOP:
        assert min(first_s) > 0.09, "it does not fire early"
    for what, times in (("the first command", first_s), ("rest", rest_s)):
        ms = np.percentile(times, [50, 99, 100]) * 1e3
        told_ms = ", ".join(f"{name} {x:.1f}" for name, x in zip(("p50", "p99", "max"), ms, strict=True))
        periods = ", ".join(f"{x / 1e3 / PERIOD_S:.1f}" for x in ms)
        print(f"\nfrom the last tick to {what}, {loops} loops [ms]: {told_ms}; periods at 100 Hz: {periods}")
    print(f"{number.name}; load average {os.getloadavg()}, {os.cpu_count()} CPUs")
