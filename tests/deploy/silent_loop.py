"""A loop at 100 Hz around a robot in a process of its own, for tests that end it."""

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import recorded_robot  # noqa: E402
from recorded_robot import PERIOD_S, SPEC  # noqa: E402

from vivace.deploy.clock import WallClock  # noqa: E402
from vivace.deploy.deadman import DeadmanSettings  # noqa: E402
from vivace.deploy.pace import Pace  # noqa: E402
from vivace.deploy.robot_process import RobotProcess  # noqa: E402
from vivace.policies.errors import RobotFailed  # noqa: E402


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
