"""One process that holds a robot, as the loop's process sees it: what was asked, and what was answered."""

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from vivace.deploy.deadman.robot_server import CLOSE_S, REST_S, Answer, Post, receive, send, serve
from vivace.deploy.deadman.shared_observation import SharedObservation
from vivace.policies import errors
from vivace.policies.errors import RobotFailed, VivaceError

CONTEXT = get_context("spawn")  # a forked process would inherit the loop's threads and locks


class RobotLink:
    """Starts a process at once.

    Whatever talks to it raises `EOFError` or `OSError` if the process is gone.

    Args:
        post: what the process is started with.
        eyes: where observations are put down.
    """

    def __init__(self, post: Post, eyes: SharedObservation) -> None:
        self._pipe: Connection
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(
            target=serve, args=(post, eyes, theirs)
        )  # daemons may have no children, drivers do
        self._process.start()
        theirs.close()
        self._asked: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._since_s: dict[str, float] = {}
        self._answers: dict[str, Answer] = {}
        self.flags = (False, False)
        """Whether the episode is over, and whether it succeeded, as of the last answer."""
        self.fired = 0
        """How often the switch has brought the robot to rest."""

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def ask(self, kind: str, *content: Any) -> None:
        """Ask for something; `wait` has the answer."""
        if not self.n_open(kind):
            self._since_s[kind] = time.monotonic()
        self._asked[kind] = self._asked.get(kind, 0) + 1
        send(self._pipe, (kind, self._asked[kind], *content))

    def n_open(self, kind: str) -> int:
        """How many questions of a kind are not answered."""
        return self._asked.get(kind, 0) - self._done.get(kind, 0)

    def open_s(self, kind: str) -> float:
        """For how long the oldest of them has waited [s]; 0 if there is none."""
        return time.monotonic() - self._since_s[kind] if self.n_open(kind) else 0.0

    def wait(self, kind: str, patience_s: float) -> Answer | None:
        """Take the answer to the last question of a kind; None: it is not there after so long [s]."""
        end_s = time.monotonic() + patience_s
        while self.n_open(kind):
            if not self._pipe.poll(max(0.0, end_s - time.monotonic())):
                return None
            self._take(receive(self._pipe))
        return self._answers.pop(kind)

    def drop(self, kind: str) -> None:
        """Forget an answer that nobody has taken."""
        self._answers.pop(kind, None)

    def has(self, kind: str) -> bool:
        """Whether an answer is there that nobody has taken."""
        return kind in self._answers

    def start(self, patience_s: float) -> Answer:
        """Wait until the robot is there.

        Raises:
            VivaceError: it could not be made, of the kind that `make_robot` raised; or it took too long [s].
        """
        self._asked["start"] = 1
        try:
            answer = self.wait("start", patience_s)
        except (EOFError, OSError) as error:
            raise RobotFailed("its process ended before it was ready; see its output") from error
        if answer is None:
            raise RobotFailed(f"its process was not ready after {patience_s:g} s; see its output")
        if answer.failure is not None:
            raise as_error(answer.failure, "it could not be made")
        return answer

    def close(self, patience_s: float) -> Answer | None:
        """Let the process bring the robot to rest, close it and end; None: no answer after so long [s]."""
        self.ask("closing")
        if self.wait("closing", patience_s) is None:
            return None
        self._asked["close"] = 1
        return self.wait("close", REST_S + CLOSE_S)

    def kill(self, patience_s: float = 0.0) -> bool:
        """End the process; whether it did so by itself, after the standstill, within so long [s]."""
        self._pipe.close()
        try:
            self._process.join(patience_s)
        finally:
            has_ended = self._process.exitcode is not None and self._process.exitcode >= 0
            self._process.kill()
            self._process.join()
        return has_ended

    def _take(self, answer: Answer) -> None:
        self._done[answer.kind] = max(answer.number, self._done.get(answer.kind, 0))
        self._since_s[answer.kind] = time.monotonic()
        self._answers[answer.kind] = answer
        self.flags, self.fired = answer.flags, answer.fired


def as_error(failure: tuple[str, str], what: str) -> VivaceError:
    """Return the exception that a failure in the other process is here: of the same kind if that is ours."""
    name, text = failure
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, VivaceError):
        return kind(text)
    return RobotFailed(f"{what}: {name}: {text}")
