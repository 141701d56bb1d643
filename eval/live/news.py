"""What goes wrong beside the ticks of a run, told once each."""

from typing import TYPE_CHECKING

from vivace.deploy.loop.loop import ControlLoop

if TYPE_CHECKING:
    from vivace.eval.live.parts import Parts


class News:
    """Notes new errors of the worker, of inferences and of the robot, in the log and on the screen.

    Args:
        parts: of the run.
        loop: of the present episode.
    """

    def __init__(self, parts: "Parts", loop: ControlLoop) -> None:
        self._parts, self._loop = parts, loop
        self._restarts, self._failures = parts.worker.restarts, 0
        self._robot_failures, self._robot_error = parts.robot.failures.total(), ""

    def tell(self) -> None:
        """Look at what has happened since the last time."""
        parts, loop = self._parts, self._loop
        if parts.worker.restarts != self._restarts:
            self._restarts = parts.worker.restarts
            self._note("worker", parts.worker.errors[-1], restarts=self._restarts)
        if loop.failures != self._failures:
            parts.failures += loop.failures - self._failures
            self._failures = loop.failures
            errors = [*parts.worker.errors[-1:], *list(loop.errors)[-1:]]
            self._note("inference", errors[-1] if errors else "no chunk came", failures=self._failures)
        if parts.robot.failures.total() != self._robot_failures:
            self._robot_failures = parts.robot.failures.total()
            if (error := parts.robot.errors[-1]) != self._robot_error:  # the same a hundred times is no news
                self._robot_error = error
                self._note("robot", error, failures=self._robot_failures)

    def _note(self, what: str, why: str, **count: int) -> None:
        self._parts.recorder.event(what, **count, why=why)
        self._parts.recorder.screen.say(f"{what}: {why}", "yellow")
