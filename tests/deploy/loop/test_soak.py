"""A long run in virtual time with every fault there is: each tick decides, the counts add up, memory is flat.

A million ticks:  python -m pytest tests/deploy/loop/test_soak.py --soak-ticks=1000000
"""

import gc
import json
import sys
from collections import Counter

import numpy as np
import pytest
from faults import HIGH, KINDS, LOW, SPEC, STEP, FaultyRobot, FaultyWorker, JumpingClock

from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.loop import build_loop
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.deploy.loop.watchdog import State, Watchdog, WatchdogSettings
from vivace.deploy.telemetry.run_log import JsonLines, RunLog, event_line, tick_line
from vivace.deploy.telemetry.statistics import LoopStatistics

HZ = 50.0
WARM = 0.25
"""Share of the run after which memory must not grow any more."""


class Soak:
    """One run and all that watches it."""

    def __init__(self, mode, seed, folder):
        clock_seed, robot_seed, worker_seed = np.random.SeedSequence(seed).spawn(3)
        self.clock = JumpingClock(np.random.default_rng(clock_seed), 0.001)
        self.robot = FaultyRobot(self.clock, np.random.default_rng(robot_seed), 0.003)
        self.worker = FaultyWorker(self.clock, np.random.default_rng(worker_seed), 0.1)
        self.log = RunLog([JsonLines(folder / "run.jsonl")])
        self.statistics = LoopStatistics(HZ)
        self.written = self.resets = self.stopped_ticks = 0
        self.entered, self.state = Counter(), State.RUN
        limits = Limits(low=(LOW,) * 3, high=(HIGH,) * 3, max_step=(STEP,) * 3)
        settings, posture = LoopSettings(mode=mode, n_action_steps=8), (0.5, 0.0, 0.0)
        watched = WatchdogSettings(
            observation_age_s=0.3, stuck_s=0.5, hold_s=0.9, starved_s=3, restarts=3, window_s=3
        )
        self.watchdog = Watchdog(watched, self.note)
        self.guard = ActionGuard(limits, KINDS, 1 / HZ)
        self.guard.limit(np.array(posture, np.float32))
        self.loop = build_loop(
            self.robot, self.worker, self.guard, self.clock, settings, SPEC,
            control_hz=HZ, posture=posture, watchdog=self.watchdog,
        )  # fmt: skip

    def note(self, transition):
        assert transition.before == self.state != transition.after
        self.state = transition.after
        self.entered[transition.after] += 1
        self.written += 1
        self.log.write(event_line("watchdog", transition.time_s, 0.0, why=transition.why))

    def tick(self):
        record = self.loop.tick()
        self.statistics.add(record)
        self.written += 1
        self.log.write(tick_line(record, 0.0))
        self.stopped_ticks = self.stopped_ticks + 1 if record.state == State.STOP else 0
        if self.stopped_ticks > 40:  # somebody comes and releases it
            self.watchdog.reset(self.clock.now())
            self.resets += 1
        return record


@pytest.mark.parametrize("mode", [Mode.SYNC, Mode.ASYNC])
def test_every_tick_decides_whatever_fails(mode, tmp_path, request):
    ticks = request.config.getoption("--soak-ticks")
    soak = Soak(mode, seed=1, folder=tmp_path)
    last, warm_blocks = -1, 0
    for n in range(ticks):
        record = soak.tick()
        assert record.tick == last + 1 + record.beat.skipped
        last = record.tick
        if n == int(WARM * ticks):
            soak.log.close()  # what waits for the disk is no leak
            warm_blocks = _blocks()
            dropped, soak.log = soak.log.dropped, RunLog([JsonLines(tmp_path / "rest.jsonl")])
    soak.log.close()
    dropped += soak.log.dropped
    assert _blocks() - warm_blocks < 5_000, "memory grows by less than one object in three ticks"
    _check_counts(soak, ticks, last)
    lines = (tmp_path / "run.jsonl").read_text() + (tmp_path / "rest.jsonl").read_text()
    assert lines.count("\n") + dropped == soak.written
    json.loads(lines.splitlines()[-1])


def _blocks():
    gc.collect()
    return sys.getallocatedblocks()


def _check_counts(soak, ticks, last):
    found, faults = soak.statistics.summary(), soak.worker.faults + soak.robot.faults + soak.clock.faults
    assert set(faults) == {
        *FaultyWorker.KINDS,
        "robot freezes",
        "camera freezes",
        "clock forth",
        "clock back",
    }
    assert soak.robot.acted == found["ticks"] == ticks
    assert found["undecided_ticks"] == 0
    assert found["skipped_deadlines"] == soak.loop.pace.skipped == last + 1 - ticks > 0
    assert sum(found["sources"].values()) == sum(found["states"].values()) == ticks
    assert found["requests"] == soak.worker.asked
    assert found["chunks"] == soak.worker.delivered == found["latency"]["n"]
    assert found["deadline_misses"] == soak.loop.budget.misses
    assert (found["deadline_misses"] == 0) == (soak.loop._settings.mode == Mode.SYNC)
    assert found["stood_still_s"] == found["sources"]["fallback"] / soak.statistics.control_hz > 0
    assert soak.loop.pace.turned_back > 0
    assert soak.worker.restarts >= faults["crash"] + faults["stall"] - 1  # one may be in flight at the end
    assert soak.watchdog.counts == soak.entered
    assert soak.watchdog.state == soak.state
    assert soak.entered[State.STOP] - (soak.state == State.STOP) == soak.resets > 0
    assert found["states"]["hold"] > 0
    assert found["states"]["run"] > 0.3 * ticks
    assert found["sources"]["chunk"] > 0.2 * ticks
    assert found["guarded"] > 0


def test_the_same_seed_gives_the_same_run(tmp_path):
    def played(name):
        (tmp_path / name).mkdir()
        soak = Soak(Mode.ASYNC, seed=3, folder=tmp_path / name)
        records = [soak.tick() for _ in range(500)]
        soak.log.close()
        return [(record.tick, record.source, record.action.tolist()) for record in records]

    assert played("first") == played("second")
