"""Run something as Windows or macOS would: our modules see no more than such a system has.

    SYSTEM=win32 python other_system.py <code>     # or darwin
    SYSTEM=win32 python other_system.py run …      # what follows `vivace`

Only imports that our modules make are changed, since the standard library has chosen by the true system. A
process that is spawned imports this file as its main module, so it is changed as well.
"""

import builtins
import multiprocessing
import os
import signal
import sys
import time
from types import ModuleType

LINUX_ONLY = {
    "os": """
        sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler sched_getparam
        sched_param SCHED_FIFO SCHED_RESET_ON_FORK memfd_create eventfd pidfd_open
    """,
    "signal": "sigwait sigwaitinfo sigtimedwait pidfd_send_signal SIGRTMIN SIGRTMAX SIGPOLL",
    "time": "CLOCK_BOOTTIME CLOCK_TAI",
}
POSIX_ONLY = {
    "os": """
        setsid getuid geteuid getgid getpgid getpgrp setpgid setpgrp killpg fork forkpty
        register_at_fork mkfifo sysconf uname nice getpriority setpriority getloadavg statvfs fchown
        chown wait wait3 wait4 waitid WNOHANG WIFEXITED WIFSIGNALED WTERMSIG ttyname openpty
        tcgetpgrp tcsetpgrp posix_spawn pread pwrite O_NOFOLLOW O_DIRECTORY O_CLOEXEC O_NONBLOCK
        O_NOCTTY
    """,
    "signal": """
        SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGKILL SIGCHLD SIGPIPE SIGTSTP SIGSTOP SIGCONT
        SIGTTIN SIGTTOU SIGWINCH SIG_BLOCK SIG_UNBLOCK SIG_SETMASK pthread_sigmask pthread_kill
        sigpending siginterrupt setitimer getitimer alarm pause
    """,
    "time": "clock_gettime clock_getres CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW CLOCK_REALTIME",
}
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
LONGEST_NAME = 31
"""Of shared memory on macOS."""


class Reduced(ModuleType):
    """A module without some of its names."""

    def __init__(self, module: ModuleType, absent: set[str], **changed: object):
        super().__init__(module.__name__)
        self._module, self._absent = module, absent
        self.__dict__.update(changed)

    def __getattr__(self, name: str):
        if name in self._absent:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)


def emulate(system: str) -> None:
    """Let our modules see what the system has, from now on."""
    lacks = [LINUX_ONLY, POSIX_ONLY] if system == "win32" else [LINUX_ONLY]
    absent = {name: set(" ".join(part[name] for part in lacks).split()) for name in LINUX_ONLY}
    seen = {module.__name__: Reduced(module, absent[module.__name__]) for module in (os, signal, time)}
    seen["sys"] = Reduced(sys, set(), platform=system)
    has = {number for number in signal.valid_signals() if getattr(number, "name", "") not in absent["signal"]}
    seen["signal"].valid_signals = lambda: {number for number in has if isinstance(number, signal.Signals)}
    gone = POSIX_MODULES if system == "win32" else set()
    real = builtins.__import__

    def reduced(name, globals=None, locals=None, fromlist=(), level=0):
        if (globals or {}).get("__name__", "").startswith("vivace."):
            if name in gone:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in seen:
                return seen[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = reduced
    if system == "darwin":
        _shorten_names()


def _shorten_names() -> None:
    """Refuse longer names of shared memory than macOS takes."""
    from multiprocessing import shared_memory

    posix = shared_memory._posixshmem

    def shm_open(path, *arguments, **options):
        if len(path) > LONGEST_NAME:
            raise OSError(63, "File name too long", path)
        return posix.shm_open(path, *arguments, **options)

    shared_memory._posixshmem = Reduced(posix, set(), shm_open=shm_open)


emulate(os.environ["SYSTEM"])
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    if sys.argv[1] != "run":
        exec(sys.argv[1])
    else:
        from vivace.eval.cli import main

        sys.exit(main(sys.argv[1:]))
