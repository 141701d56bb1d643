"""A robot in a process of its own, which brings it to rest when the control loop falls silent.

To the loop it is a robot like any other. Behind it, `robot_server` holds the robot and the dead man's switch
(`deadman`). An answer that does not come in time is a `RobotFailed`, so a robot that blocks does not block
the loop; the answer is taken when it is there.

A process that ends, or that commands do not reach, is replaced if the robot would go on moving meanwhile: one
that was told a velocity. The new one connects anew and begins with the standstill.
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from vivace.deploy.deadman.deadman import DeadmanSettings
from vivace.deploy.deadman.robot_link import CONTEXT, RobotLink, as_error
from vivace.deploy.deadman.robot_server import CLOSE_S, OPTIONAL, REST_S, Answer, Post, Sharing
from vivace.deploy.deadman.shared_observation import SharedObservation
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.robot import Robot
from vivace.deploy.loop.standstill import is_standstill
from vivace.deploy.system.realtime import RealtimeSettings, allowed_cpus
from vivace.policies.errors import BadSetting, RobotFailed, VivaceError
from vivace.policies.spec import ActionKind, Observation, PolicySpec

_BACKLOG = 16
"""Actions that may wait for a robot; more are not sent, so nobody ever waits for room in the pipe."""
_PATIENCE_S = 1.0
"""Longest that the loop waits for an answer, whatever the control period [s]."""
_UNHURRIED_S = 30.0
"""How long a robot that was not told anything yet may take for an answer: cameras warm up [s]."""
_ATTEMPTS = 3
"""To replace a process."""
_PAUSE_S = 0.5
"""Between them [s]."""
_ENDINGS = 2
"""Processes that are asked to end in turn: the one there is, and one in the place of a dead one."""
_KEPT = 100
"""Errors that are remembered."""


class RobotProcess:
    """Satisfies `Robot`, with the robot itself elsewhere.

    Args:
        make: makes the robot; called in the process, must be picklable.
        spec: of the policy.
        period_s: control period [s].
        settings: of the dead man's switch.
        name: of the robot, for messages.
        realtime: what the loop asks of the operating system.
        is_only_way: the robot is commanded over this process alone; else one that ends is not replaced.
        patience_s: how long the process may take to start [s].
    """

    def __init__(
        self,
        make: Callable[[], Robot],
        spec: PolicySpec,
        period_s: float,
        settings: DeadmanSettings,
        *,
        name: str = "robot",
        realtime: RealtimeSettings | None = None,
        is_only_way: bool = True,
        patience_s: float = 60.0,
    ) -> None:
        self._spec, self._settings, self._name, self._start_s = spec, settings, name, patience_s
        self._is_only_way = is_only_way
        self._eyes = SharedObservation(spec, CONTEXT)
        self._post = Post(
            make=make,
            kinds=tuple(spec.action_kinds),
            limits=Limits(),
            period_s=period_s,
            limit_s=settings.limit_s(period_s),
            realtime=_above(realtime or RealtimeSettings()),
            cpus=frozenset(allowed_cpus()),
            told=None,
        )
        self._link: RobotLink | None = None
        self._starter: threading.Thread | None = None
        self._offered: tuple[str, ...] = ()
        self._fired = 0
        self._errors: list[str] = []
        self._told: np.ndarray | None = None
        self._is_taken = False
        self.sharing = Sharing.ALONE
        """How the switch reaches a robot that is busy."""
        self.restarts = 0
        """Processes that were replaced."""

    def start(self) -> None:
        """Start the process and wait until the robot is there.

        Raises:
            VivaceError: the robot cannot be made.
        """
        link = RobotLink(self._post, self._eyes)
        try:
            self._take_over(link)
        except BaseException as error:
            link.kill(CLOSE_S)
            if isinstance(error, RobotFailed):
                raise RobotFailed(
                    f"robot {self._name!r}: {error}; a robot that asks for input, or must stay in the loop's "
                    "process, needs --deadman.enabled=false"
                ) from error
            raise
        atexit.register(self.close)  # before multiprocessing waits for a process that heeds nothing else

    def _take_over(self, link: RobotLink) -> None:
        answer = link.start(self._start_s)
        self.sharing, self._offered, refused = answer.value
        self._errors.extend(refused)
        self._link = link

    @property
    def limit_s(self) -> float:
        """Without a tick for so long the robot is brought to rest [s]."""
        return self._post.limit_s

    @property
    def pid(self) -> int | None:
        """Of the process; None if there is none."""
        return None if self._link is None else self._link.pid

    @property
    def fired(self) -> int:
        """How often the switch has brought the robot to rest."""
        return self._fired + (0 if self._link is None else self._link.fired)

    @property
    def deadman(self) -> dict[str, Any]:
        """What the switch was and did, as plain data."""
        return {
            "limit_s": self.limit_s,
            "sharing": self.sharing.value,
            "fired": self.fired,
            "restarts": self.restarts,
        }

    @property
    def warning(self) -> str:
        """What the switch cannot do for this robot, if that may matter: it goes on when it hears nothing."""
        if self.sharing != Sharing.ALONE or not self._can_run_on:
            return ""
        return (
            f"robot {self._name!r} does not say that it can act while it observes (is_shareable), and has no "
            f"standstill_connection(): a call that blocks keeps the dead man's switch from it, unless the "
            f"switch can break it off; it is connected anew after {self._settings.stall_s:g} s"
        )

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """The robot's."""
        names = self._ask("get", "action_names")
        return None if names is None else tuple(names)

    @property
    def action_kinds(self) -> tuple[str, ...] | None:
        """The robot's."""
        kinds = self._ask("get", "action_kinds")
        return None if kinds is None else tuple(kinds)

    @property
    def is_simulated(self) -> bool:
        """Whether nothing moves in the world; the robot's."""
        return self._ask("get", "is_simulated") is True

    @property
    def initial_action(self) -> tuple[float, ...] | None:
        """The robot's."""
        action = self._ask("get", "initial_action")
        return None if action is None else tuple(action)

    @property
    def errors(self) -> list[str]:
        """What the process failed of, and once it is closed what the robot did, newest last."""
        return list(self._errors)

    def __getattr__(self, name: str) -> Any:
        """Offer on what not every robot has."""
        if name in OPTIONAL and name in self.__dict__.get("_offered", ()):
            if name == "reset":
                return self._reset
            link = self._link
            return link is not None and link.flags[name == "is_success"]
        raise AttributeError(
            f"a robot in a process of its own has {', '.join(OPTIONAL)} if the robot has, but no {name!r}; "
            "for more of it give --deadman.enabled=false"
        )

    def arm(self, kinds: Sequence[ActionKind], limits: Limits) -> None:
        """Tell the switch what actions mean and which limits a standstill keeps; before the first action."""
        self._post = replace(self._post, kinds=tuple(kinds), limits=limits)
        self._ask("arm", tuple(kinds), limits)

    def observe(self) -> Observation:
        """Return what the robot sees.

        Raises:
            RobotFailed: it failed, does not answer in time, or is being connected anew.
            ObservationMismatch: it sees something else than the policy reads.
        """
        with self._linked() as link:
            patience_s = 0.0  # that of an earlier call was waited for
            if not link.n_open("observe") and not link.has("observe"):
                link.ask("observe")
                patience_s = _UNHURRIED_S if self._told is None else self._patience_s
            answer = link.wait("observe", patience_s)
        if answer is None:
            raise RobotFailed(
                f"robot {self._name!r} has not answered observe() for {link.open_s('observe'):.2f} s"
            )
        return self._eyes.read(self._checked(answer, "observe()"))

    def act(self, action: np.ndarray) -> None:
        """Tell the robot an action (A,), and the switch that the loop lives.

        Raises:
            RobotFailed: it failed, does not take the action in time, or is being connected anew.
            BadSetting: the action has another shape.
        """
        if action.shape != (self._spec.action_dim,):
            raise BadSetting(f"an action has shape {action.shape}; ({self._spec.action_dim},) is needed")
        with self._linked() as link:
            patience_s = 0.0 if link.n_open("act") else self._patience_s
            if link.n_open("act") < _BACKLOG:
                self._told, self._is_taken = np.array(action, np.float32), False
                link.ask("act", time.monotonic(), self._told.tobytes())
            answer = link.wait("act", patience_s)
        if answer is not None:
            self._checked(answer, "act()")
            self._is_taken = True
            return
        late_s = link.open_s("act")
        if late_s > self._settings.stall_s and self._can_run_on:
            self._replace(link, f"it has taken no action for {late_s:.2f} s")
        raise RobotFailed(f"robot {self._name!r} has not taken an action for {late_s:.2f} s")

    def close(self) -> None:
        """Bring the robot to rest if it is not, close it, and end the process."""
        if self._starter is not None:
            self._starter.join()
        for _ in range(_ENDINGS):
            link = self._link
            has_ended = link is not None and self._end(link)
            self._link = None
            if has_ended or not self._can_run_on or self._is_at_rest:
                break
            self._connect_anew()  # a process that is gone has left the robot moving
        atexit.unregister(self.close)

    def _end(self, link: RobotLink) -> bool:
        """Let a process bring the robot to rest and close it; whether it did so, and was not killed."""
        answer = None
        try:
            answer = link.close(self._settings.stall_s)
        except Exception:  # even what an interrupt has left in the middle: the pipe's end will tell it
            self._note("its process did not say good-bye")
        finally:
            has_ended = link.kill(CLOSE_S if answer else REST_S + CLOSE_S)
        self._fired += link.fired
        if answer is not None:
            self._errors[:0] = answer.value
        self._told = None if has_ended else self._told
        return has_ended

    @property
    def _patience_s(self) -> float:
        """How long the loop waits for an answer [s]: it must be back before the switch takes over."""
        return min(0.5 * self.limit_s, _PATIENCE_S)

    @property
    def _is_at_rest(self) -> bool:
        """Whether the robot has surely executed a standstill last, or nothing."""
        told = self._told
        return told is None or (self._is_taken and is_standstill(told, told, self._post.kinds))

    @property
    def _can_run_on(self) -> bool:
        """Whether a robot that hears nothing more goes on moving."""
        return self._is_only_way and ActionKind.VELOCITY in self._post.kinds

    @contextmanager
    def _linked(self) -> Iterator[RobotLink]:
        """The process, if there is one; its end is noticed here."""
        link = self._link
        if link is None:
            is_starting = self._starter is not None and self._starter.is_alive()
            why = "is being connected anew" if is_starting else "is closed or gone"
            raise RobotFailed(f"robot {self._name!r} {why}: {', '.join(self._errors[-1:]) or 'by the loop'}")
        try:
            yield link
        except (EOFError, OSError) as error:
            self._replace(link, "its process has ended")
            raise RobotFailed(f"the process of robot {self._name!r} has ended") from error

    def _ask(self, kind: str, *content: Any) -> Any:
        """Ask for something that may take its time, while no ticks are expected."""
        with self._linked() as link:
            link.ask(kind, *content)
            answer = link.wait(kind, _UNHURRIED_S)
        if answer is None:
            raise RobotFailed(f"robot {self._name!r} did not answer within {_UNHURRIED_S:g} s")
        return self._checked(answer, kind)

    def _reset(self, seed: int) -> None:
        self._ask("reset", seed)
        self._told = None
        if self._link is not None:
            self._link.drop("observe")  # of the episode before

    def _checked(self, answer: Answer, what: str) -> Any:
        """The answer's value; raises what it failed of."""
        if answer.failure is None:
            return answer.value
        error = as_error(answer.failure, f"robot {self._name!r} failed in {what}")
        self._note(str(error))
        raise error

    def _replace(self, link: RobotLink, why: str) -> None:
        """Let go of a process; beside the loop, another one takes its place if the robot would run on."""
        self._note(why)
        self._fired, self._link = self.fired, None

        def start() -> None:
            link.kill()
            if self._can_run_on:
                self._connect_anew()

        self._starter = threading.Thread(target=start, daemon=True)
        self._starter.start()

    def _connect_anew(self) -> None:
        """Start another process, which begins with the standstill."""
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt * _PAUSE_S)
            self.restarts += 1
            link = RobotLink(replace(self._post, told=self._told), self._eyes)
            try:
                self._take_over(link)
            except VivaceError as error:
                self._note(str(error))
                link.kill(CLOSE_S)
            else:
                return

    def _note(self, error: str) -> None:
        self._errors.append(error)
        del self._errors[:-_KEPT]


def _above(settings: RealtimeSettings) -> RealtimeSettings:
    """What the robot's process asks for: a loop that never sleeps must not keep the switch from acting."""
    priority = settings.fifo_priority
    return replace(settings, fifo_priority=min(99, priority + 1) if priority else 0, cpus=())
