"""The process that holds a robot: it observes and acts as it is told, and runs the dead man's switch.

The other end is `robot_process.RobotProcess`. It belongs to no terminal, heeds no signal but kill -9, and
waits for nobody: what it prints is dropped before it blocks, and every answer has room. It ends when it is
told to, or when the loop's process is gone; then the robot is brought to rest first.

The main thread listens, watches and acts. Who observes depends on the robot:

    shared    (robot.is_shareable) another thread observes, so an `observe` that blocks hinders nobody
    second    (robot.standstill_connection) another thread observes and acts, and the switch commands the
              standstill over a connection of its own
    alone     the main thread does all. A call that blocks while the robot moves is broken off when the
              standstill is due, if the system has timers and the call returns to Python at times

A driver that keeps Python's interpreter to itself while it waits blocks all of these.
"""

import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from vivace.deploy.deadman.deadman import Deadman
from vivace.deploy.deadman.shared_observation import SharedObservation
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.robot import Closes, Ends, HasSecondWay, Judges, able, trait
from vivace.deploy.system.realtime import RealtimeSettings, realtime
from vivace.deploy.telemetry.output_relay import OutputRelay
from vivace.policies.backports import StrEnum
from vivace.policies.errors import RobotFailed, in_one_line
from vivace.policies.spec import ActionKind

SIGNALS = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2")
"""What a terminal, a shell or a service manager may send; not every system has them all."""
OPTIONAL = ("reset", "is_over", "is_success")
"""Attributes of a robot that are offered on if it has them."""
ERRORS = 20
"""Failures that are handed on at the end."""
REST_S = 10.0
"""How long a robot may take to come to rest [s]."""
CLOSE_S = 5.0
"""How long closing it may take [s]."""
_NAP_S = 0.5
"""How often the process looks whether the loop's is alive [s]."""
_LEAST_S = 0.001
"""Of a timer: none at all would be 0 [s]."""
_REPEATS = 5
"""Commands of the standstill after which a robot without a loop is let go: one may be lost."""


class Answer(NamedTuple):
    """What the process says."""

    kind: str
    """Of the question."""
    number: int
    """Of the question, from 1; the ones before it need no answer any more."""
    value: Any
    failure: tuple[str, str] | None
    """(class, text) of an exception."""
    flags: tuple[bool, bool]
    """Whether the episode is over, and whether it succeeded."""
    fired: int
    """How often the switch has brought the robot to rest."""


class Sharing(StrEnum):
    """How the switch reaches a robot that is busy."""

    SHARED = "shared"
    SECOND = "second"
    ALONE = "alone"


@dataclass(frozen=True, kw_only=True)
class Post:
    """What the process is started with."""

    make: Callable[[], Any]
    """Makes the robot."""
    kinds: tuple[ActionKind, ...]
    limits: Limits
    period_s: float
    limit_s: float
    realtime: RealtimeSettings
    cpus: frozenset[int]
    """CPUs the process may run on; any when empty."""
    told: np.ndarray | None
    """Last action (A,) of a process that this one replaces: the robot is brought to rest from it at once."""


def serve(post: Post, eyes: SharedObservation, pipe: Connection) -> None:
    """Make the robot and serve it; the life of the process."""
    _leave_the_terminal()
    if post.cpus:
        os.sched_setaffinity(0, post.cpus)
    with OutputRelay():
        try:
            robot = post.make()
            _ignore_signals()  # a driver may have asked for them
            server = RobotServer(robot, post, eyes, pipe)
        except Exception as error:  # whatever it is, the loop's side must know
            with suppress(OSError):
                send(pipe, Answer("start", 1, None, described(error), (False, False), 0))
        else:
            with realtime(post.realtime) as grants:
                server.run(tuple(f"{grant.what} was refused: {grant.why}" for grant in grants if grant.why))


def send(pipe: Connection, message: Any) -> None:
    """Send a small message.

    `Connection.send` would leave a view of a BytesIO in the traceback of a broken pipe, on which the garbage
    collector of Python 3.12 crashes.
    """
    pipe.send_bytes(pickle.dumps(message, protocol=5))


def receive(pipe: Connection) -> Any:
    """Receive a message of `send`; the other side is a process of ours."""
    return pickle.loads(pipe.recv_bytes())


def described(error: BaseException) -> tuple[str, str]:
    """(class, text) of an exception, which the other process need not be able to import."""
    return type(error).__name__, in_one_line(error, 2000)


class BrokenOff(BaseException):
    """Raised inside of a robot's call to break it off; no `Exception`, or drivers would try again."""


class RobotServer:
    """Serves one robot.

    Args:
        robot: as `robots.make_robot` makes it.
        post: what the process was started with.
        eyes: where observations are put down.
        pipe: to the loop's process.
    """

    def __init__(self, robot: Any, post: Post, eyes: SharedObservation, pipe: Connection) -> None:
        self._robot, self._post, self._eyes, self._pipe = robot, post, eyes, pipe
        self._parent = parent_process()
        self._speaks = threading.Lock()
        second = able(robot, HasSecondWay)
        self._second = None if second is None else second.standstill_connection()
        if self._second is not None:
            self.sharing = Sharing.SECOND
        else:
            self.sharing = Sharing.SHARED if trait(robot, "is_shareable") is True else Sharing.ALONE
        self._hands = _Lane(self.sharing == Sharing.SECOND)
        self._others = self._hands if self.sharing != Sharing.SHARED else _Lane(has_thread=True)
        self._deadman = Deadman(post.limit_s, post.period_s, post.kinds, post.limits)
        self._flags = (False, False)
        self._look()
        self._is_closing = self._may_break = False
        self._quiet = 0
        """Commands in a row that the robot took at rest."""

    def run(self, refused: tuple[str, ...] = ()) -> None:
        """Serve until the other side says so or is gone; then bring the robot to rest and close it.

        Args:
            refused: what the operating system did not grant, to be told.
        """
        if self._post.told is not None:
            self._deadman.tick(self._post.told, time.monotonic() - self._post.limit_s)
        offered = tuple(name for name in OPTIONAL if hasattr(self._robot, name))
        self._say("start", 1, (self.sharing, offered, refused))
        try:
            while not self._is_closing:
                self._watch()
                if self._pipe.poll(self._nap_s()):
                    self._listen()
                elif self._parent is not None and not self._parent.is_alive():
                    break
        except (EOFError, OSError):
            pass  # the loop's process is gone
        finally:
            self._bring_to_rest()
            self._close()

    def _nap_s(self) -> float:
        wait_s = self._deadman.wait_s(time.monotonic())
        return _NAP_S if wait_s is None else min(wait_s, _NAP_S)

    def _listen(self) -> None:
        """Do what was asked for; of several actions, which came while the robot was busy, the newest."""
        messages = [receive(self._pipe)]
        while self._pipe.poll(0):
            messages.append(receive(self._pipe))
        acts = [message for message in messages if message[0] == "act"]
        for kind, *content in [*acts[-1:], *(message for message in messages if message[0] != "act")]:
            getattr(self, f"_on_{kind}")(*content)

    def _on_act(self, number: int, time_s: float, action: bytes) -> None:
        told = np.frombuffer(action, np.float32).copy()
        if not self._deadman.is_late(time_s, time.monotonic()):
            self._deadman.tick(told, time_s)
        self._hands(self._answer, "act", number, lambda: self._act(told, time_s))

    def _on_observe(self, number: int) -> None:
        self._others(self._answer, "observe", number, lambda: self._eyes.write(self._robot.observe()))

    def _on_reset(self, number: int, seed: int) -> None:
        self._deadman.disarm()
        self._others(self._answer, "reset", number, lambda: self._reset(seed))

    def _on_get(self, number: int, name: str) -> None:
        self._others(self._answer, "get", number, lambda: self._get(name))

    def _on_arm(self, number: int, kinds: Sequence[ActionKind], limits: Limits) -> None:
        self._deadman = Deadman(self._post.limit_s, self._post.period_s, kinds, limits)
        self._say("arm", number)

    def _on_closing(self, number: int) -> None:
        self._is_closing = True
        self._say("closing", number)

    def _act(self, action: np.ndarray, time_s: float) -> None:
        """Tell the robot, unless the action is an old one by now."""
        if self._deadman.is_late(time_s, now := time.monotonic()):
            raise RobotFailed(
                f"an action came {now - time_s:.2f} s late and was not executed; the robot was busy"
            )
        self._robot.act(action.copy())  # it may write into it

    def _reset(self, seed: int) -> None:
        self._robot.reset(seed)

    def _get(self, name: str) -> Any:
        """Return what the robot may have: a sequence, or a word about itself."""
        value = getattr(self._robot, name, None)
        return value if value is None or isinstance(value, bool) else list(value)

    def _answer(self, kind: str, number: int, ask: Callable[[], Any]) -> None:
        value, failure = None, None
        try:
            value = self._in_time(self._deadman.wait_s(time.monotonic()), ask)
            self._look()
        except BrokenOff:
            text = f"{kind} took so long that the robot had to be brought to rest; raise --deadman.floor_s"
            failure = described(RobotFailed(text))
        except (Exception, SystemExit) as error:  # whatever it is, the loop's side must know
            failure = described(error)
        self._say(kind, number, value, failure)

    def _in_time(self, wait_s: float | None, ask: Callable[[], Any]) -> Any:
        """Ask a robot that may be moving; broken off after so long [s] if nobody else could stop it."""
        is_free = self.sharing != Sharing.ALONE or self._deadman.is_at_rest
        if is_free or wait_s is None or not hasattr(signal, "setitimer"):
            return ask()
        try:
            try:
                self._may_break = True
                signal.signal(signal.SIGALRM, self._break_off)
                signal.setitimer(signal.ITIMER_REAL, max(wait_s, _LEAST_S), self._post.limit_s)
                return ask()
            finally:
                self._may_break = False
        finally:
            self._may_break = False  # the timer may have struck just above
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        if self._may_break:
            raise BrokenOff

    def _look(self) -> None:
        """See how the episode stands, if the robot has episodes."""
        if (robot := able(self._robot, Ends)) is not None:
            judge = able(self._robot, Judges)
            self._flags = bool(robot.is_over), judge is not None and bool(judge.is_success)

    def _say(self, kind: str, number: int, value: Any = None, failure: tuple[str, str] | None = None) -> None:
        with self._speaks, suppress(OSError):  # nobody is there: `run` will see it
            send(self._pipe, Answer(kind, number, value, failure, self._flags, self._deadman.fired))

    def _watch(self) -> None:
        """Command the standstill if it is due; what the robot refuses is tried again a period later."""
        command = self._deadman.command(time.monotonic())
        if command is None:
            return
        try:
            act = partial((self._second or self._robot).act, command.copy())
            self._in_time(self._post.limit_s, act)
        except (
            Exception,
            BrokenOff,
        ):  # whatever it is: a robot that does not listen now may do so the next time
            self._quiet = 0
        else:
            self._quiet = self._quiet + 1 if self._deadman.is_at_rest else 0

    def _bring_to_rest(self) -> None:
        """Command the standstill until the robot has taken it, for a robot that the loop has left moving."""
        if not self._deadman.is_armed or (self._is_closing and self._deadman.is_at_rest):
            return
        end_s = time.monotonic() + REST_S
        self._deadman.fire(time.monotonic())
        self._quiet = 0
        while self._quiet < _REPEATS and time.monotonic() < end_s:
            self._watch()
            time.sleep(self._nap_s())

    def _close(self) -> None:
        """Let the robot go; the process ends even if that hangs."""
        timer = threading.Timer(CLOSE_S, os._exit, (1,))
        timer.daemon = True
        timer.start()
        errors = [str(error) for error in getattr(self._robot, "errors", ())][-ERRORS:]
        for held in (self._second, self._robot):
            if (closing := able(held, Closes)) is not None:
                try:
                    closing.close()
                except Exception as error:  # it is let go all the same
                    errors.append(f"closing: {': '.join(described(error))}")
        self._say("close", 1, errors)


class _Lane:
    """Runs calls one after the other: at once, or in a thread of its own."""

    def __init__(self, has_thread: bool) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._has_thread = has_thread
        if has_thread:
            threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._has_thread:
            self._calls.put((call, arguments))
        else:
            call(*arguments)

    def _run(self) -> None:
        while True:
            call, arguments = self._calls.get()
            call(*arguments)


def _leave_the_terminal() -> None:
    """Nothing but kill -9 ends this process from outside, and no terminal stops it."""
    _ignore_signals()
    if hasattr(signal, "pthread_sigmask"):  # what the loop holds back is inherited
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # it leads a session already
            os.setsid()


def _ignore_signals() -> None:
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
