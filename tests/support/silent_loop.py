"""A loop at 100 Hz around a robot in a process of its own, for tests that end it."""

import sys
import time
from functools import partial

import numpy as np
import recorded_robot
from recorded_robot import PERIOD_S, SPEC

from vivace.deploy.deadman.deadman import DeadmanSettings
from vivace.deploy.deadman.robot_process import RobotProcess
from vivace.deploy.loop.clock import WallClock
from vivace.deploy.loop.pace import Pace
from vivace.policies.errors import RobotFailed


def main(folder: str, kind: str, ticks: str = "1000000", floor_s: str = "0.1") -> None:
    settings = DeadmanSettings(periods=5, floor_s=float(floor_s), stall_s=1.0)
    make = partial(getattr(recorded_robot, kind), folder)
    robot = RobotProcess(make, SPEC, PERIOD_S, settings, name=kind)
    robot.start()
    pace = Pace(WallClock(), PERIOD_S)
    tick = failed = 0
    has_said = False
    print("pid", robot.pid, flush=True)
    while tick < int(ticks):
        tick = pace.wait(tick).tick + 1
        try:
            robot.observe()
            robot.act(np.array([0.75, 0.25], np.float32))
        except RobotFailed as error:
            if not failed:
                print("failed", error, flush=True)
            failed += 1
        if tick >= 10 and not has_said:
            has_said = True
            print("ticks", flush=True)
    began = time.monotonic()
    robot.act(np.array([0.0, 0.25], np.float32))
    robot.close()
    print("closed", f"{time.monotonic() - began:.3f}", robot.fired, robot.restarts, robot.errors, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
