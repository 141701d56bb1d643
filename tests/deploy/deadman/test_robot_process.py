"""A robot in a process of its own: a robot like any other to the loop, whatever becomes of either."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import recorded_robot
from processes import is_alive, until
from recorded_robot import CAMERAS, SPEC, TwoCameras, acts, told

from vivace.deploy.deadman import robot_access, robot_server
from vivace.deploy.deadman.deadman import DeadmanSettings
from vivace.deploy.deadman.robot_access import arm, is_wanted, open_robot
from vivace.deploy.deadman.robot_process import RobotProcess, _above
from vivace.deploy.deadman.shared_observation import Buffers, SharedObservation
from vivace.deploy.loop.guard import Limits
from vivace.deploy.robots.registry import action_kinds, action_names, check_robot, initial_action
from vivace.deploy.system.realtime import RealtimeSettings
from vivace.policies.errors import BadSetting, ObservationMismatch, RobotFailed
from vivace.policies.spec import ActionKind, Observation

CALM = DeadmanSettings(floor_s=20.0, stall_s=20.0)
"""For a machine so busy that healthy processes wait for seconds."""


def robot(kind, folder, settings=CALM, **options):
    made = RobotProcess(
        partial(getattr(recorded_robot, kind), folder), SPEC, 0.01, settings, name=kind, **options
    )
    made.start()
    return made


def again(call, *arguments):
    while True:
        call(*arguments)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    made = robot("Shared", folder)
    yield made, folder
    made.close()


def go(speed=0.0):
    return np.array([speed, 0.25], np.float32)


def test_it_is_a_robot_like_any_other(shared):
    made, folder = shared
    assert action_names(made, SPEC) == ("drive", "lift")
    assert (
        action_kinds(made, ("drive", "lift"), replace(SPEC, action_kinds=(ActionKind.UNKNOWN,) * 2))
        == SPEC.action_kinds
    )
    assert not made.is_simulated
    assert initial_action(made, SPEC) == (0.0, 0.5)
    check_robot(made, SPEC)
    before, after = made.observe(), made.observe()
    assert isinstance(after, Observation)
    assert (after.tick - before.tick, after.task) == (1, "go")
    assert before.time_s < after.time_s < time.monotonic()
    for key, shape, kind in (
        ("observation.state", (2,), np.float32),
        ("observation.images.front", (4, 5, 3), np.uint8),
    ):
        value = after.values[key]
        assert (value.shape, value.dtype) == (shape, kind)
        assert (value != before.values[key]).any(), "a copy, not what is overwritten by the next"
        value[...] = 0
    made.act(go(0.1))
    made.act(go())
    assert [numbers for _, _, numbers in acts(folder)[-2:]] == [[np.float32(0.1), 0.25], [0.0, 0.25]]


def test_what_the_robot_lacks_is_lacking(shared):
    made, _ = shared
    for name in ("reset", "is_over", "is_success", "film", "spec"):
        assert not hasattr(made, name)
    with pytest.raises(AttributeError, match="reset, is_over, is_success if the robot has, but no 'film'"):
        made.film  # noqa: B018
    assert made.warning == ""


def test_what_the_robot_fails_of_is_said_in_the_loops_process(shared):
    made, folder = shared
    (folder / "broken eyes").touch()
    with pytest.raises(
        RobotFailed, match=r"robot 'Shared' failed in observe\(\): RuntimeError: no frame for"
    ):
        made.observe()
    (folder / "broken eyes").unlink()
    (folder / "broken hands").touch()
    with pytest.raises(RobotFailed, match=r"failed in act\(\): ConnectionError: the bus is silent"):
        made.act(go())
    (folder / "broken hands").unlink()
    made.act(go())
    made.observe()
    assert made.errors[-2].endswith("RuntimeError: no frame for 200 ms")
    with pytest.raises(BadSetting, match=r"an action has shape \(1, 2\); \(2,\) is needed"):
        made.act(np.zeros((1, 2), np.float32))


def test_a_signal_does_not_end_it_nor_does_the_end_fire_it(tmp_path):
    made = robot("Shared", tmp_path)
    pid = made.pid
    assert os.getsid(pid) == pid, "no terminal reaches it"
    made.act(go(0.5))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        os.kill(pid, number)
    made.act(go(0.0))
    made.observe()
    made.close()
    assert not is_alive(pid)
    assert [numbers[0] for _, _, numbers in acts(tmp_path)] == [0.5, 0.0], "the switch had nothing to do"
    assert told(tmp_path)[-1][1] == "closed"
    assert (made.fired, made.restarts, made.errors) == (0, 0, ["a wheel squeaks"])
    made.close()
    with pytest.raises(RobotFailed, match="is closed or gone"):
        made.observe()


def test_a_robot_that_is_closed_while_it_moves_is_brought_to_rest_first(tmp_path):
    made = robot("Base", tmp_path)
    warning = arm(made, SPEC.action_kinds, Limits(max_acceleration=(1.0, 1000.0)))
    assert "robot 'Base' does not say that it can act while it observes (is_shareable)" in warning
    assert "unless the switch can break it off; it is connected anew after 20 s" in warning
    made.act(go(0.1))
    made.close()
    drive = [numbers[0] for _, _, numbers in acts(tmp_path)]
    assert drive[:11] == pytest.approx(np.linspace(0.1, 0, 11), abs=1e-6), "inside the limits"
    assert drive[11:] == [0.0] * len(drive[11:])
    assert len(drive) > 11
    assert told(tmp_path)[-1][1] == "closed"


def test_episodes_are_offered_on_and_all_happens_in_one_thread(tmp_path):
    made = robot("Episodic", tmp_path)
    assert made.is_over
    made.reset(7)
    assert (made.is_over, made.is_success) == (False, False)
    assert made.observe().tick == 8
    made.act(go(2.0))
    assert (made.is_over, made.is_success) == (True, True)
    made.reset(8)
    assert not made.is_over
    made.close()
    assert [what for _, what, _ in told(tmp_path)][:4] == ["made", "reset", "act", "reset"]
    assert len(acts(tmp_path)) == 1, "an episode's end is no silence of the loop"


@pytest.mark.parametrize("kind", ["Shared", "Base", "Second"])
def test_a_robot_that_blocks_does_not_block_the_loop_and_comes_to_rest(tmp_path, kind):
    made = robot(kind, tmp_path, DeadmanSettings(floor_s=0.3, stall_s=60))
    made.observe()
    made.act(go(0.5))
    (tmp_path / "blind").touch()
    with pytest.raises(RobotFailed, match=r"has not answered observe\(\) for 0.\d+ s|observe took so long"):
        again(made.observe)
    until(lambda: acts(tmp_path)[-1][2] == [0.0, 0.25])
    (tmp_path / "blind").unlink()
    assert made.restarts == 0
    assert {what for _, what, _ in acts(tmp_path)} == ({"act", "stand"} if kind == "Second" else {"act"})
    made.close()
    assert told(tmp_path)[-1][1] == "closed"


def test_an_answer_that_was_waited_for_is_not_waited_for_again(tmp_path):
    made = robot("Shared", tmp_path, DeadmanSettings(floor_s=1.0))
    made.act(go())
    (tmp_path / "blind").touch()
    with pytest.raises(RobotFailed, match="has not answered"):
        again(made.observe)
    began = time.monotonic()
    with pytest.raises(RobotFailed, match="has not answered"):
        made.observe()
    assert time.monotonic() - began < 0.4
    (tmp_path / "blind").unlink()
    made.close()


def test_a_robot_that_no_action_reaches_is_connected_anew(tmp_path):
    made = robot("Deaf", tmp_path, DeadmanSettings(floor_s=0.3, stall_s=1.5))
    made.act(go(0.5))
    (tmp_path / "blind").touch()
    with pytest.raises(RobotFailed, match="has not answered"):
        again(made.observe)

    def goes_on():
        with suppress(RobotFailed):
            made.act(go(0.5))
        time.sleep(0.05)
        return made.restarts

    until(goes_on)
    (tmp_path / "blind").unlink()
    until(lambda: [0.0, 0.25] in [numbers for _, _, numbers in acts(tmp_path)])
    assert any("it has taken no action for" in error for error in made.errors)
    made.close()
    assert told(tmp_path)[-1][1] == "closed"


def test_a_process_that_is_killed_is_replaced_by_one_that_begins_with_the_standstill(tmp_path):
    made = robot("Shared", tmp_path)
    made.act(go(0.75))
    os.kill(made.pid, signal.SIGKILL)
    with pytest.raises(RobotFailed, match="the process of robot 'Shared' has ended"):
        again(made.act, go(0.75))
    with pytest.raises(RobotFailed, match="is being connected anew: its process has ended"):
        made.observe()
    until(lambda: acts(tmp_path)[-1][2] == [0.0, 0.25])
    until(lambda: made.pid)
    made.act(go(0.5))
    made.observe()
    assert made.restarts == 1
    os.kill(made.pid, signal.SIGKILL)
    made.close()
    assert acts(tmp_path)[-1][2] == [0.0, 0.25], "even at the end"
    assert told(tmp_path)[-1][1] == "closed"
    assert (made.restarts, made.fired >= 1) == (2, True)


def test_what_the_system_does_not_grant_is_told_and_a_driver_that_quits_is_an_error(tmp_path):
    asked = RealtimeSettings(freeze_gc=True)
    made = robot("refused", tmp_path, realtime=asked)
    assert made.errors == ["no garbage collection was refused: not for you"]
    made.close()
    made = robot("Quitter", tmp_path, realtime=asked)
    assert made.errors == []
    with pytest.raises(RobotFailed, match=r"failed in observe\(\): SystemExit: the driver has had enough"):
        made.observe()
    made.act(go())
    assert made.restarts == 0
    made.close()


def test_what_a_broken_pipe_leaves_behind_does_not_crash_the_garbage_collector():
    code = """
import gc, multiprocessing
from contextlib import contextmanager
from vivace.deploy.deadman.robot_server import send

@contextmanager
def linked():
    try:
        yield
    except OSError as error:
        raise RuntimeError("gone") from error

def tell(pipe):
    with linked():
        send(pipe, ("act", 1, bytes(8)))

def once():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    held = []
    try:
        tell(ours)
    except RuntimeError as error:
        held += [error, held]

gc.disable()
for number in range(300):
    once()
    if number % 7 == 0:
        gc.collect()
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_robots_that_cannot_be_made(tmp_path):
    with pytest.raises(
        RobotFailed, match="robot 'failing': it could not be made: ValueError: no such port; a"
    ):
        robot("failing", tmp_path)
    with pytest.raises(RobotFailed, match="robot 'ending': its process ended before it was ready"):
        robot("ending", tmp_path)
    with pytest.raises(BadSetting, match="robot 'leg' is not known"):
        open_robot("leg", {}, {"spec": SPEC, "control_hz": 10.0}, DeadmanSettings())
    with pytest.raises(RobotFailed, match="was not ready after 0 s"):
        robot("Base", tmp_path, patience_s=0)


def test_the_switch_is_on_for_real_robots_and_the_loop_makes_the_others_itself(monkeypatch):
    monkeypatch.setattr(robot_access, "is_simulated", lambda kind: kind == "world")
    assert is_wanted(DeadmanSettings(), "arm")
    assert not is_wanted(DeadmanSettings(), "world")
    assert is_wanted(DeadmanSettings(enabled=True), "world")
    assert not is_wanted(DeadmanSettings(enabled=False), "arm")
    lamp = SimpleNamespace(observe=lambda: None, act=lambda action: None)
    monkeypatch.setattr(robot_access, "make_robot", lambda kind, options, context: (lamp, kind, options))
    context = {"spec": SPEC, "control_hz": 10.0}
    assert open_robot("lamp", {"a": 1}, context, DeadmanSettings(enabled=False)) == (lamp, "lamp", {"a": 1})
    assert arm(lamp, SPEC.action_kinds, Limits()) == ""


def test_observations_that_the_policy_cannot_read():
    shared = SharedObservation(SPEC, robot_server_context())
    seen = {"observation.state": np.zeros(2), "observation.images.front": np.zeros((4, 5, 3), np.uint8)}
    read = shared.read(shared.write(Observation(seen | {"other": np.zeros(9)}, 3, 1.5, "x" * 999)))
    assert set(read.values) == set(seen), "what the policy does not read is not carried"
    assert (read.values["observation.state"].dtype, read.task) == (np.float64, "x" * 999)
    turned = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[:, :, ::-1]
    read = shared.read(shared.write(Observation(seen | {"observation.images.front": turned}, 0, 0.0)))
    assert (read.values["observation.images.front"] == turned).all()
    with pytest.raises(ObservationMismatch, match=r"observe\(\) returned a dict; return a"):
        shared.write(seen)
    with pytest.raises(
        ObservationMismatch, match=r"has keys \['arm'\], but the policy needs 'observation.state'"
    ):
        shared.write(Observation({"arm": np.zeros(2)}, 0, 0.0))
    with pytest.raises(
        ObservationMismatch, match=r"has shapes .*\(480, 640, 3\).*, the policy needs .*; resize"
    ):
        shared.write(
            Observation(seen | {"observation.images.front": np.zeros((480, 640, 3), np.uint8)}, 0, 0.0)
        )


def test_memory_is_used_again_only_when_nobody_looks_at_it():
    buffers, big = Buffers(), 1 << 17
    held = [np.frombuffer(buffers.copy(np.full(big, i, np.uint8)), np.uint8) for i in range(4)]
    assert [(a == i).all() for i, a in enumerate(held)] == [True] * 4
    part, view = held[0][5:9], memoryview(buffers.copy(np.full(big, 9, np.uint8)))
    addresses = {a.ctypes.data for a in held}
    del held[0]
    for i in range(10):
        other = np.frombuffer(buffers.copy(np.full(big, 20 + i, np.uint8)), np.uint8)
        assert other.ctypes.data not in addresses
    assert (part.tolist(), view[0], view[-1]) == ([0] * 4, 9, 9)
    assert [(a == i + 1).all() for i, a in enumerate(held)] == [True] * 3
    del part, other
    again = {np.frombuffer(buffers.copy(np.zeros(big, np.uint8)), np.uint8).ctypes.data for _ in range(10)}
    assert len(again) == 1
    assert len(buffers._kept) <= 8


def test_observations_that_are_held_stay_as_they_were():
    shared = SharedObservation(CAMERAS, robot_server_context())
    held = []
    robot = TwoCameras()
    for tick in range(1, 9):
        seen = robot.observe()
        held.append((shared.read(shared.write(seen)), seen))
        if tick % 3 == 0:
            del held[0]
    for read, seen in held:
        for key, value in seen.values.items():
            assert (read.values[key] == value).all()
            assert read.values[key].flags.writeable


def robot_server_context():
    from vivace.deploy.deadman.robot_link import CONTEXT

    return CONTEXT


def test_a_system_without_sessions_and_with_few_signals(monkeypatch):
    ignored = []
    few = SimpleNamespace(
        signal=lambda number, handler: ignored.append((number, handler)), SIG_IGN=1, SIGINT=2, SIGTERM=15
    )
    monkeypatch.setattr(robot_server, "signal", few)
    monkeypatch.setattr(robot_server, "os", SimpleNamespace())
    robot_server._leave_the_terminal()
    assert ignored == [(2, 1), (15, 1)]


def test_the_switch_comes_before_a_loop_with_priority():
    assert _above(RealtimeSettings(fifo_priority=80, cpus=(0,))) == RealtimeSettings(fifo_priority=81)
    assert _above(RealtimeSettings(fifo_priority=99)).fifo_priority == 99
    assert _above(RealtimeSettings()).fifo_priority == 0


def test_kinds_are_of_the_policy_unless_said():
    made = RobotProcess(lambda: None, SPEC, 0.01, DeadmanSettings())
    assert made.warning
    made._post = made._post.__class__(**{**vars(made._post), "kinds": (ActionKind.ABSOLUTE,) * 2})
    assert made.warning == "", "targets are held by themselves"


@pytest.mark.parametrize("is_shareable", [False, True])
def test_two_cameras_arrive_bit_for_bit_and_what_that_costs_is_told(request, is_shareable):
    ticks = request.config.getoption("--deadman-ticks")
    here, there = (
        TwoCameras(is_shareable),
        RobotProcess(partial(TwoCameras, is_shareable), CAMERAS, 0.01, CALM),
    )
    there.start()
    action, took = np.linspace(-1, 1, 7).astype(np.float32), {}
    for tick in range(ticks):
        for name, robot in (("here", here), ("there", there)):
            time.sleep(0.002)
            began = time.perf_counter()
            seen = robot.observe()
            observed = time.perf_counter()
            robot.act(action)
            took.setdefault(f"{name}, observe", []).append(observed - began)
            took.setdefault(f"{name}, act", []).append(time.perf_counter() - observed)
        if tick < 10:
            for key, value in TwoCameras.observe(
                SimpleNamespace(**vars(here) | {"count": tick})
            ).values.items():
                assert (seen.values[key] == value).all()
    there.close()
    for name, times in took.items():
        p50, p99 = np.percentile(times, [50, 99]) * 1e6
        print(f"\n{there.sharing}: {name} [us]: p50 {p50:.0f}, p99 {p99:.0f}", end="")
