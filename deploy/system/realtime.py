"""What an operating system may grant a control loop so that its ticks come on time.

Nothing here is needed: what is refused is reported with the reason, and the loop runs as well as it can.
"""

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from vivace.policies.errors import BadSetting

_MCL_CURRENT, _MCL_FUTURE = 1, 2


@dataclass(frozen=True, kw_only=True)
class RealtimeSettings:
    """What to ask for; nothing but the switch interval by default."""

    fifo_priority: int = 0
    """SCHED_FIFO priority of the loop's thread, 1..99; 0: the usual scheduler. The other threads of the
    process get priority 1."""
    lock_memory: bool = False
    """Keep all memory in RAM."""
    cpus: tuple[int, ...] = ()
    """CPUs the loop's thread may run on; any when empty. The worker's process keeps the others' freedom."""
    freeze_gc: bool = False
    """No garbage collection while the loop runs."""
    switch_s: float = 0.0005
    """How long another thread of this process may keep the interpreter when a tick is due [s]; 0: Python's
    own 5 ms."""
    spin_s: float = 0.0
    """Last part of the wait for a tick that is spun instead of slept [s]."""

    def __post_init__(self) -> None:
        """Priorities, CPUs and times must exist."""
        if not 0 <= self.fifo_priority <= 99:
            raise BadSetting(f"fifo_priority={self.fifo_priority}; 1..99, or 0 for none, is needed")
        if any(cpu < 0 for cpu in self.cpus):
            raise BadSetting(f"cpus={self.cpus}; numbers from 0 are needed")
        if not 0 <= self.switch_s < 1 or not 0 <= self.spin_s < 1:
            raise BadSetting(f"switch_s={self.switch_s}, spin_s={self.spin_s}; seconds in 0..1 are needed")


@dataclass(frozen=True, slots=True)
class Grant:
    """One thing that was asked for."""

    what: str
    is_granted: bool
    why: str = ""
    """Why it was refused."""


@contextmanager
def realtime(settings: RealtimeSettings) -> Iterator[tuple[Grant, ...]]:
    """Ask for what the settings name, for the thread that calls; given back at the end.

    Start the worker's process before, or it would inherit the CPUs.

    Yields:
        What was asked for, and whether it was granted.
    """
    with ExitStack() as given:
        grants = []
        for what, ask in _wanted(settings).items():
            try:
                give_back = ask()
            except (OSError, AttributeError, ImportError) as error:  # the latter two: not on this system
                grants.append(Grant(what, is_granted=False, why=_reason(error)))
                continue
            given.callback(give_back)
            grants.append(Grant(what, is_granted=True))
        yield tuple(grants)


def _wanted(settings: RealtimeSettings) -> dict[str, Callable[[], Callable[[], None]]]:
    """What is asked for -> the function that asks, which returns the one that gives it back."""
    wanted: dict[str, Callable[[], Callable[[], None]]] = {}
    if settings.switch_s:
        wanted[f"switch interval {settings.switch_s:g} s"] = lambda: _switch(settings.switch_s)
    if settings.freeze_gc:
        wanted["no garbage collection"] = _freeze
    if settings.lock_memory:
        wanted["locked memory"] = _lock
    if settings.cpus:
        wanted[f"CPUs {', '.join(map(str, settings.cpus))}"] = lambda: _pin(settings.cpus)
    if settings.fifo_priority:
        wanted[f"SCHED_FIFO {settings.fifo_priority}"] = lambda: _fifo(settings.fifo_priority)
    return wanted


def _switch(seconds: float) -> Callable[[], None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    return lambda: sys.setswitchinterval(before)


def _freeze() -> Callable[[], None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()

    def thaw() -> None:
        gc.unfreeze()
        if was_enabled:
            gc.enable()

    return thaw


def _lock() -> Callable[[], None]:
    import resource  # not on every system

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # a later allocation would fail, and end the run
        raise OSError(f"the limit of locked memory is {soft // 1024} KiB; raise it: ulimit -l unlimited")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def unlock() -> None:
        libc.munlockall()

    return unlock


def _pin(cpus: tuple[int, ...]) -> Callable[[], None]:
    before = os.sched_getaffinity(0)
    if not set(cpus) <= before:
        raise OSError(f"this process may use CPUs {', '.join(map(str, sorted(before)))} only")
    os.sched_setaffinity(0, cpus)
    return lambda: os.sched_setaffinity(0, before)


def _fifo(priority: int) -> Callable[[], None]:
    """Give the loop's thread its priority, and the process's other threads the lowest of that kind.

    One of the others may hold the interpreter when a tick is due: the loop would wait until the usual
    scheduler lets it go on, which on a busy machine took 0.2 s.
    """
    us = threading.get_native_id()
    before: dict[int, tuple[int, os.sched_param]] = {}
    # Reset on fork: threads and processes begun later, such as the worker's, compete with the loop otherwise.
    kind = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    for thread in sorted({us, *(t.native_id for t in threading.enumerate() if t.native_id)}, key=us.__ne__):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            now = os.sched_getscheduler(thread), os.sched_getparam(thread)
            os.sched_setscheduler(thread, kind, os.sched_param(priority if thread == us else 1))
            before[thread] = now

    def give_back() -> None:
        for thread, (policy, parameters) in before.items():
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, policy, parameters)

    return give_back


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "not permitted; allow it with CAP_SYS_NICE, or rtprio in /etc/security/limits.conf"
    if isinstance(error, AttributeError | ImportError):
        return f"this system has no such call ({error})"
    return str(error)


def allowed_cpus() -> set[int]:
    """CPUs that this process may run on; empty where that cannot be said."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
