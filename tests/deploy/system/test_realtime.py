"""What the system grants is used and given back; what it refuses is said and nothing else."""

import gc
import os
import resource
import sys
from types import SimpleNamespace

import pytest

from vivace.deploy.system import realtime as module
from vivace.deploy.system.realtime import Grant, RealtimeSettings, realtime
from vivace.policies.errors import BadSetting


@pytest.fixture
def system(monkeypatch):
    """A system that grants everything and notes what it was asked."""
    calls = []

    class Libc:
        result = 0

        def mlockall(self, flags):
            calls.append(("mlockall", flags))
            return self.result

        def munlockall(self):
            calls.append(("munlockall",))

    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, policy, p: calls.append((pid, policy, p)))
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_OTHER)
    monkeypatch.setattr(os, "sched_getparam", lambda pid: "usual")
    threads = [SimpleNamespace(native_id=number) for number in (5, 7, None, 3)]
    monkeypatch.setattr(module.threading, "enumerate", lambda: threads)
    monkeypatch.setattr(module.threading, "get_native_id", lambda: 7)
    monkeypatch.setattr(os, "sched_param", lambda priority: priority)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: calls.append(("cpus", set(cpus))))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name, use_errno: Libc())
    return calls, Libc


def test_everything_is_asked_for_and_given_back(system):
    calls, _ = system
    everything = RealtimeSettings(
        fifo_priority=40, lock_memory=True, cpus=(1, 5), freeze_gc=True, switch_s=0.001
    )
    before = sys.getswitchinterval()
    with realtime(everything) as grants:
        assert [grant.what for grant in grants] == [
            "switch interval 0.001 s", "no garbage collection", "locked memory", "CPUs 1, 5", "SCHED_FIFO 40",
        ]  # fmt: skip
        assert all(grant.is_granted for grant in grants)
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        assert sys.getswitchinterval() == pytest.approx(0.001)
        asked = list(calls)
    fifo = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert asked[:3] == [("mlockall", 3), ("cpus", {1, 5}), (7, fifo, 40)]
    assert sorted(asked[3:]) == [(3, fifo, 1), (5, fifo, 1)], "no thread is put aside with the interpreter"
    assert sorted(calls[5:8]) == [(thread, os.SCHED_OTHER, "usual") for thread in (3, 5, 7)]
    assert calls[8:] == [("cpus", {0, 1, 5}), ("munlockall",)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == before


def test_refusals_are_said_and_do_not_end_the_run(system, monkeypatch):
    _, libc = system

    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(libc, "result", -1)
    monkeypatch.setattr(module.ctypes, "get_errno", lambda: 12)
    asked = RealtimeSettings(fifo_priority=1, lock_memory=True, cpus=(7,), switch_s=0)
    with realtime(asked) as grants:
        refused = {grant.what: grant for grant in grants}
    assert refused["SCHED_FIFO 1"].why.startswith("not permitted; allow it with CAP_SYS_NICE")
    assert "memory" in refused["locked memory"].why
    assert refused["CPUs 7"] == Grant("CPUs 7", False, "this process may use CPUs 0, 1, 5 only")
    assert not any(grant.is_granted for grant in grants)


def test_memory_is_not_locked_under_a_limit_that_would_fail_later(system, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (8 * 1024 * 1024,) * 2)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with realtime(RealtimeSettings(lock_memory=True, switch_s=0)) as (grant,):
        assert grant.why == "the limit of locked memory is 8192 KiB; raise it: ulimit -l unlimited"


def test_a_system_without_the_call(system, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    with realtime(RealtimeSettings(cpus=(0,), switch_s=0)) as (grant,):
        assert grant.why.startswith("this system has no such call")


def test_all_is_given_back_after_an_error(system):
    with pytest.raises(KeyError), realtime(RealtimeSettings(freeze_gc=True)):
        raise KeyError("in the loop")
    assert gc.isenabled()


@pytest.mark.parametrize(("options", "message"), [
    ({"fifo_priority": 100}, "fifo_priority=100; 1..99"),
    ({"cpus": (-1,)}, r"cpus=\(-1,\); numbers from 0"),
    ({"switch_s": -1}, "switch_s=-1"),
    ({"spin_s": 2}, "spin_s=2"),
])  # fmt: skip
def test_bad_settings_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        RealtimeSettings(**options)
