"""What the node says of itself: three lines and the numbers behind them; needs no ROS."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from vivace.deploy.ros2.driver import Driver
from vivace.deploy.ros2.messages.sensors import Sensors
from vivace.deploy.ros2.robot import RetimedWorker
from vivace.deploy.telemetry.histogram import percentile
from vivace.deploy.workers.process_worker import ProcessWorker

_KEPT_ERRORS = 16


class Level(IntEnum):
    """As in diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Status:
    """One diagnostic_msgs/DiagnosticStatus."""

    name: str
    level: Level
    message: str
    values: dict[str, str] = field(default_factory=dict)


def loop_status(state: str, fault: str, driver: Driver | None) -> Status:
    """Say what the control loop does.

    Args:
        state: of the lifecycle.
        fault: why the node gave up; "" if it did not.
        driver: while the node is active.
    """
    name = "control loop"
    if fault:
        return Status(name, Level.ERROR, fault, {"state": state})
    if driver is None:
        return Status(name, Level.OK, state, {"state": state})
    values = {
        "state": state,
        "task": driver.task,
        "episode": str(driver.episode),
        **{f"ticks {source}": str(driver.ticks[source]) for source in ("chunk", "stale", "fallback", "hold")},
        "chunks": str(driver.chunks),
        "deadline misses": str(driver.misses),
        **{f"chosen {plan}": str(count) for plan, count in driver.choices.items()},
        "guard interventions": str(driver.interventions),
        "QoS deadline misses": str(driver.late_commands),
        "skipped ticks": str(driver.skipped),
        "observation to command [ms]": percentiles(driver.reactions_s),
    }
    if driver.reason:
        return Status(name, Level.WARN, f"holding: {driver.reason}", values)
    return Status(name, Level.OK, "running", values)


def sensor_status(sensors: Sensors, now: float, problems: Iterable[str]) -> Status:
    """Say what is seen, and what was refused since this was asked last.

    Args:
        sensors: what is seen.
        now: time on the clock that stamps are of [s].
        problems: of the middleware, such as incompatible QoS.
    """
    news = [*sensors.news().values(), *problems]
    lack = sensors.why_not(now)
    values = {}
    for key, sensor in sensors.sensors.items():
        age = "never seen" if sensor.value is None else f"age {(now - sensor.stamp_s) * 1e3:.0f} ms"
        line = f"{sensor.taken} taken, {age}, {sensor.refused} refused"
        line += f", {sensor.foreign} of other joints" if sensor.foreign else ""
        line += f" (last: {sensor.reason})" if sensor.reason else ""
        line += f", {sensor.unstamped} unstamped" if sensor.unstamped else ""
        line += f", {sensor.deadline_misses} deadline misses" if sensor.deadline_misses else ""
        values[key] = line
    level = Level.WARN if news or lack else Level.OK
    return Status("observations", level, "; ".join([*([lack] if lack else []), *news]) or "fresh", values)


def command_status(rivals: Sequence[str]) -> Status:
    """Say who else sends commands.

    Args:
        rivals: a line for each.
    """
    level = Level.WARN if rivals else Level.OK
    return Status("commands", level, "; ".join(rivals) or "nobody else publishes where commands go")


def inference_status(worker: ProcessWorker, times: RetimedWorker, errors_before: int) -> tuple[Status, int]:
    """Say how inference goes.

    Args:
        worker: the process.
        times: what measured its latencies.
        errors_before: errors counted so far; those that are kept are shortened to the newest.

    Returns:
        The status, and the errors counted now.
    """
    fresh = list(worker.errors)
    worker.errors.clear()
    count = errors_before + len(fresh)
    values = {
        "latency [ms]": percentiles(times.latencies_s),
        "restarts": str(worker.restarts),
        "errors": str(count),
        **({"last errors": " | ".join(fresh[-_KEPT_ERRORS:])} if fresh else {}),
    }
    if not worker.is_ready:
        return Status("inference", Level.ERROR, "its process is being started again", values), count
    if fresh:
        return Status("inference", Level.WARN, f"{len(fresh)} failed: {fresh[-1]}", values), count
    return Status("inference", Level.OK, "ready", values), count


def percentiles(seconds: Iterable[float]) -> str:
    """Return "p50 …, p95 …, max … (n …)" in milliseconds, "p95 –" of too few; "none yet" of nothing."""
    times_s = list(seconds)
    if not times_s:
        return "none yet"
    high_s = percentile(times_s, 95)
    high = "–" if high_s is None else f"{high_s * 1e3:.1f}"
    return f"p50 {np.median(times_s) * 1e3:.1f}, p95 {high}, max {max(times_s) * 1e3:.1f} (n {len(times_s)})"
