"""Signals are flags while a robot may move, and a call that blocks is broken off."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from vivace.deploy.system.interrupts import Interrupts, TookTooLong

ENDING = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR2", "SIGPROF")]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal as standard input; returns the other end of it."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


@pytest.mark.parametrize("name", ENDING)
def test_what_would_end_the_process_only_asks_for_it(name):
    before = signal.getsignal(getattr(signal, name))
    with Interrupts() as interrupts:
        interrupts.hold_back()
        assert not interrupts.wants_end
        for _ in range(10):
            signal.raise_signal(getattr(signal, name))
        assert (interrupts.wants_end, interrupts.name) == (True, name)
    assert signal.getsignal(getattr(signal, name)) is before


def test_before_the_robot_moves_the_first_signal_breaks_off_and_no_other():
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # what it broke off is being closed
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            interrupts.hold_back()


def test_a_driver_that_takes_ctrl_c_does_not_keep_it():
    with Interrupts() as interrupts:
        signal.signal(signal.SIGINT, lambda number, frame: pytest.fail("the robot goes on"))
        interrupts.hold_back()
        signal.raise_signal(signal.SIGINT)
        assert interrupts.wants_end


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:  # as under nohup
            interrupts.hold_back()
            signal.raise_signal(signal.SIGHUP)
            assert not interrupts.wants_end
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_may_be_broken_off_again_raises_once(terminal):
    with Interrupts() as interrupts:
        interrupts.hold_back()
        with pytest.raises(KeyboardInterrupt, match="SIGINT"), interrupts.let_through():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="SIGINT"), interrupts.let_through():
            pytest.fail("one came before")
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.name == "SIGINT"


def test_a_process_that_ends_anyway_ends_with_its_own_code():
    code = "import os, signal; from vivace.deploy.system.interrupts import outlive; outlive(); "
    code += "[os.kill(os.getpid(), getattr(signal, n)) for n in ('SIGINT', 'SIGTERM', 'SIGHUP')]; os._exit(5)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 5


def test_a_call_that_blocks_is_broken_off_also_if_it_tries_again():
    tried = []

    def stubborn():
        for _ in range(3):
            try:
                time.sleep(100)
            except Exception as error:
                tried.append(str(error))
        select.select([], [], [], 100)

    with Interrupts() as interrupts:
        interrupts.hold_back()
        began = time.monotonic()
        with pytest.raises(TookTooLong, match="took too long and was broken off"):
            interrupts.within(0.05, stubborn)
        assert time.monotonic() - began < 90
        assert len(tried) == 3
        assert interrupts.within(50.0, lambda a, b: a + b, 1, 2) == 3
        assert interrupts.within(0.0, lambda: signal.getitimer(signal.ITIMER_REAL)) == (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_before_the_robot_moves_nothing_is_broken_off():
    with Interrupts() as interrupts:
        assert interrupts.within(0.001, lambda: signal.getitimer(signal.ITIMER_REAL)) == (0.0, 0.0)


def test_enter_and_usr1_release_once_and_the_end_of_the_input_does_not(terminal):
    with Interrupts() as interrupts:
        assert not interrupts.release_wanted()
        os.write(terminal, b"\n")
        assert interrupts.release_wanted()
        assert not interrupts.release_wanted()
        signal.raise_signal(signal.SIGUSR1)
        assert interrupts.release_wanted()
        assert not interrupts.release_wanted()
        os.write(terminal, b"\x04")  # Ctrl-D: the end of the input
        assert not interrupts.release_wanted()


def test_a_terminal_that_was_closed_releases_nothing(monkeypatch):
    ours, theirs = pty.openpty()
    stdin = os.fdopen(theirs)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(closed=False, isatty=lambda: True, fileno=stdin.fileno))
    os.close(ours)
    with stdin, Interrupts() as interrupts:
        assert not interrupts.release_wanted()


def test_windows_has_fewer_signals_and_keys_instead_of_lines(monkeypatch, terminal):
    for name in (
        "SIGUSR1",
        "SIGUSR2",
        "SIGHUP",
        "SIGQUIT",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGALRM",
        "SIGPIPE",
    ):
        monkeypatch.delattr(signal, name)
    for name in ("setitimer", "getitimer", "ITIMER_REAL", "pthread_sigmask", "SIGKILL", "SIGSTOP", "SIGCHLD"):
        monkeypatch.delattr(signal, name)
    known = {signal.SIGINT, signal.SIGILL, signal.SIGFPE, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT}
    monkeypatch.setattr(signal, "valid_signals", lambda: known)
    keys = list("ab\rc")
    windows = SimpleNamespace(kbhit=lambda: bool(keys), getwch=lambda: keys.pop(0))
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr(select, "select", lambda *lists: pytest.fail("Windows selects sockets only"))
    with Interrupts() as interrupts:
        interrupts.hold_back()
        assert interrupts.within(1.0, lambda: 3) == 3
        assert interrupts.release_wanted()
        assert not interrupts.release_wanted()
        signal.raise_signal(signal.SIGINT)
        assert interrupts.wants_end
