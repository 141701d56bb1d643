"""`vivace run` in wall-clock time, on a simulation and on a user's robot; short, but nothing is faked."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.workers.process_worker import ProcessWorker
from vivace.eval.cli import main
from vivace.policies.spec import ActionKind, Observation

pytestmark = pytest.mark.sim


@pytest.fixture
def arm(monkeypatch):
    """A user's robot; returns what it was told."""
    told = []

    class Arm:
        action_names = ("x", "y", "z", "grip")
        initial_action = (0.0, 0.0, 0.0, 0.5)
        is_closed = False

        def observe(self):
            return Observation({"observation.state": np.full(39, 0.1)}, len(told), time.monotonic())

        def act(self, action):
            told.append(action)

        def close(self):
            told.append("closed")

    monkeypatch.setitem(sys.modules, "users_robot", SimpleNamespace(arm=lambda: Arm(), Arm=Arm))
    return told


def run(capsys, bundle, folder, *more):
    """Run; returns the exit code, the last line and results.json."""
    capsys.readouterr()
    code = main(["run", f"--bundle={bundle}", f"--output_dir={folder}", "--inference.threads=1", *more])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert "ONNX Runtime threads: 1, as given" in told.err  # G17
    return code, json.loads(told.out.splitlines()[-1]), json.loads((folder / "results.json").read_text())


def test_a_simulation_runs_in_real_time(capsys, bundle, tmp_path):
    code, line, found = run(
        capsys, bundle, tmp_path, "--robot.task=reach-moving", "--control_hz=25", "--duration_s=1.5",
        "--n_episodes=0", "--robot.options={max_steps: 15}", "--realtime.freeze_gc=true",
        "--require=[run.decided>=0.1]", "--draw=true",
    )  # fmt: skip
    assert code == 0
    ticks = found["run"]["ticks"]
    assert 5 < ticks <= 1.5 * 25 + 3
    assert found["duration_s"] >= 1.4
    assert len(found["episodes"]) >= 2
    assert sum(episode["ticks"] for episode in found["episodes"]) == ticks == line["ticks"]
    assert found["run"]["undecided_ticks"] == 0
    assert found["run"]["latency"]["n"] == found["run"]["chunks"] > 0
    assert [grant["is_granted"] for grant in found["realtime"]] == [True, True]
    lines = [json.loads(text) for text in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in lines].count("tick") == ticks
    report = (tmp_path / "report.html").read_text()
    assert "tick late, after its deadline" in report
    assert 'src="data:video/mp4;base64,' in report
    assert (tmp_path / found["video"]).stat().st_size > 1000
    slices = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(entry["name"].startswith("tick ") for entry in slices) == ticks
    assert sum(entry["name"] == "inference" for entry in slices) == found["run"]["chunks"]
    before = report.count("<section>")
    assert main(["report", f"--results={tmp_path}"]) == 0
    assert (tmp_path / "report.html").read_text().count("<section>") == before


def test_a_users_robot_with_limits_keeps_them_and_is_closed(capsys, bundle, tmp_path, arm):
    limits = tmp_path / "limits.yaml"
    limits.write_text("limits: {x: {low: -0.01, high: 0.01}, y: {}, z: {}, grip: {step: 0.05}}")
    code, _, found = run(
        capsys, bundle, tmp_path / "out", "--robot.type=users_robot:arm", f"--limits={limits}",
        "--control_hz=50", "--duration_s=1", "--cpu_load=1", "--loop.mode=sync",
    )  # fmt: skip
    assert code == 0
    assert arm[-1] == "closed"
    actions = np.array(arm[:-1])
    assert len(actions) == found["run"]["ticks"] + 1, "and the standstill at the end"
    assert actions[-1].tolist() == [0.0, 0.0, 0.0, actions[-2][3]], "displacements are zero, targets hold"
    assert np.abs(actions[:, 0]).max() <= 0.01 + 1e-6
    assert np.abs(np.diff([0.5, *actions[:, 3]])).max() <= 0.05 + 1e-6, "the posture is where it starts"
    assert found["run"]["guarded"] > 0
    assert found["episodes"] == []
    assert found["settings"]["cpu_load"] == 1


def test_limits_are_those_of_the_training_data_unless_loosened_by_name(capsys, bundle, tmp_path, arm):
    """Its actions are uniform in [-1, 1]; where training saw less, nothing else reaches the robot."""
    whole = Bundle.load(shutil.copytree(bundle, tmp_path / "narrow"))
    known = whole.spec.action_range
    assert np.array(known.low) == pytest.approx([-1] * 4, abs=0.1)
    assert known.bounds_from == "min and max of the training data"
    assert known.step_from.startswith("2 times the largest in 8 of 1 episodes of metaworld/reach-moving")
    low, high = (*(-0.01,) * 3, known.low[3]), (*(0.01,) * 3, known.high[3])
    narrow = replace(known, low=low, high=high, step=(*known.step[:3], 0.001))
    replace(whole, spec=replace(whole.spec, action_range=narrow)).write()
    flags = ["--robot.type=users_robot:arm", "--duration_s=0.5", "--control_hz=50"]
    code, line, found = run(capsys, whole.folder, tmp_path / "out", *flags)
    actions = np.array(arm[:-1])
    assert (code, found["settings"]["limits"][:11]) == (0, "min and max")
    assert found["run"]["sources"]["chunk"] + found["run"]["sources"]["stale"] > 0
    assert np.all((np.array(low) - 1e-4 <= actions) & (actions <= np.array(high) + 1e-4))
    assert np.all(np.abs(np.diff([0.5, *actions[:, 3]])) <= 0.001 + 1e-6)
    assert line["guarded"] == found["run"]["guarded"] > 0
    replace(whole, spec=replace(whole.spec, action_range=None)).write()
    assert main(["run", f"--bundle={whole.folder}", *flags]) == 2
    assert "does not say what the actions of its training data were" in capsys.readouterr().err


def test_a_posture_in_other_units_is_refused(capsys, bundle, arm):
    sys.modules["users_robot"].Arm.initial_action = (0, 0, 0, 90.0)
    assert main(["run", f"--bundle={bundle}", "--robot.type=users_robot:arm"]) == 2
    assert (
        "the robot holds 90 in dimension 3 of its actions, far outside its limits" in capsys.readouterr().err
    )


def test_a_base_does_not_go_on_with_its_last_velocity(capsys, bundle, tmp_path, arm):
    """Its names say that it has velocities; the bundle's word for another robot is refused, or overruled."""
    base = sys.modules["users_robot"].Arm
    base.action_names, base.initial_action = ("x.vel", "y.vel", "theta.vel", "grip.pos"), (0.4, 0, 0, 0.5)
    flags = ["--robot.type=users_robot:arm", "--duration_s=1", "--control_hz=50", "--limits=none"]
    assert main(["run", f"--bundle={bundle}", *flags]) == 2
    assert "the bundle says that 'x.vel' is delta, the robot says velocity" in capsys.readouterr().err
    kinds = "--robot.action_kinds=[velocity,velocity,velocity,absolute]"
    arm.clear()
    code, _, found = run(capsys, bundle, tmp_path / "out", *flags, kinds)
    assert (code, arm[-1]) == (0, "closed")
    actions = np.array(arm[:-1])
    assert found["run"]["sources"]["chunk"] > 0
    assert np.abs(actions[:, :3]).max() > 0.01, "it moved"
    assert actions[-1, :3].tolist() == [0, 0, 0]


def test_ctrl_c_ends_cleanly_and_usr1_releases_a_stopped_robot(capsys, bundle, tmp_path, arm):
    class Frozen(sys.modules["users_robot"].Arm):
        def observe(self):
            return Observation({"observation.state": np.full(39, 0.1)}, 0, 0.0)

    def meanwhile():
        deadline = time.monotonic() + 60
        while not arm and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.0)  # it is stopped by now
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1.0)  # and stopped again
        os.kill(os.getpid(), signal.SIGINT)

    sys.modules["users_robot"].frozen = Frozen
    helper = threading.Thread(target=meanwhile)
    helper.start()
    before = signal.getsignal(signal.SIGINT)
    code, line, found = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:frozen", "--control_hz=20",
        "--watchdog.observation_age_s=0.15", "--watchdog.hold_s=0.1", "--watchdog.late_s=0",
    )  # fmt: skip
    helper.join()
    assert (code, line["was_interrupted"], line["state"]) == (1, True, "stop")
    assert line["why"] == found["watchdog"]["why"]
    assert "the observation's time has not gone on for" in line["why"]
    assert found["ending"] == {"signal": "SIGINT", "fault": None, "is_at_rest": True}
    assert found["watchdog"]["counts"] == {"hold": 2, "stop": 2, "run": 1}
    assert [event["why"] for event in found["events"] if event["event"] == "watchdog"][2] == "reset"
    assert signal.getsignal(signal.SIGINT) is before
    assert arm[-1] == "closed"
    assert found["run"]["ticks"] == len(arm) - 2
    assert not (tmp_path / "report.html").exists(), "nobody asked for it"
    assert line["draw"] == f"vivace report --results={tmp_path}"
    assert main(["report", f"--results={tmp_path}"]) == 0
    assert (tmp_path / "report.html").is_file()


def test_a_killed_worker_is_replaced_while_the_loop_goes_on(capsys, bundle, tmp_path, arm):
    def meanwhile():
        deadline = time.monotonic() + 60
        while len(arm) < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in multiprocessing.active_children():
            process.kill()
        killed = len(arm)
        while len(arm) < killed + 20 and time.monotonic() < deadline:
            time.sleep(0.01)

    helper = threading.Thread(target=meanwhile)
    helper.start()
    code, _, found = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:arm", "--control_hz=20", "--duration_s=6"
    )
    helper.join()
    assert (code, found["worker"]["restarts"]) == (0, 1)
    assert found["worker"]["errors"][0].startswith("the inference process was replaced: it ")
    assert [event["restarts"] for event in found["events"] if event["event"] == "worker"] == [1]
    assert found["run"]["ticks"] + found["run"]["skipped_deadlines"] >= 6 * 20 - 2
    lines = [json.loads(text) for text in (tmp_path / "run.jsonl").read_text().splitlines()]
    at = next(n for n, entry in enumerate(lines) if entry["kind"] == "event" and entry["event"] == "worker")
    before, after = (
        [e["chunk"] for e in part if e.get("chunk") is not None] for part in (lines[:at], lines[at:])
    )
    assert max(after) > max(before, default=-1), "the new process computes"


def test_a_worker_that_never_comes_back_between_episodes_is_said(capsys, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("vivace.eval.live.drive._PATIENCE_S", -100.0)
    monkeypatch.setattr("vivace.eval.live.parts.ProcessWorker.is_busy", True)
    asked = ["run", f"--bundle={bundle}", f"--output_dir={tmp_path}"]
    assert main(asked) == 2
    assert "the inference process does not come back" in capsys.readouterr().err


def test_a_missed_target_is_exit_code_1(capsys, bundle, tmp_path, arm):
    code, _, _ = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:arm", "--duration_s=0.3",
        "--require=[run.effective_hz>=999]",
    )  # fmt: skip
    assert code == 1


def test_a_computer_that_cannot_draw_still_has_results(capsys, bundle, tmp_path, arm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vivace.eval.report.results", None)
    code, line, found = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:arm", "--duration_s=0.3", "--loop.mode=rtc",
        "--draw=true",
    )  # fmt: skip
    assert (code, line["report"]) == (0, None)
    assert found["run"]["ticks"] == len(arm) - 2 > 0
    assert not (tmp_path / "report.html").exists()


def test_the_robots_errors_are_told_and_the_run_goes_on(capsys, bundle, tmp_path, arm):
    class Loose(sys.modules["users_robot"].Arm):
        n = 0

        def observe(self):
            self.n += 1
            if self.n > 3 and self.n % 3 == 0:
                raise RuntimeError("[TxRxResult] There is no status packet!")
            return super().observe()

        def act(self, action):
            if self.n % 5 == 4:
                raise ValueError("overload")
            super().act(action)

    sys.modules["users_robot"].loose = Loose
    code, line, found = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:loose", "--control_hz=20", "--duration_s=1.5",
        "--watchdog.late_s=0",
    )  # fmt: skip
    assert (code, line["state"]) == (0, "run")
    counts = found["robot_failures"]["counts"]
    assert counts["observing"] > 3
    assert counts["acting"] > 2
    assert line["robot_failures"] == sum(counts.values())
    told = [event["why"] for event in found["events"] if event["event"] == "robot"]
    assert "observing: RuntimeError: [TxRxResult] There is no status packet!" in told
    assert arm[-1] == "closed"


def test_a_fault_is_told_after_the_robot_is_at_rest_and_closed(capsys, bundle, tmp_path, arm, monkeypatch):
    def broken(worker, now):
        if len(arm) > 5:
            raise EOFError("Ran out of input")
        return poll(worker, now)

    poll = ProcessWorker.poll
    monkeypatch.setattr(ProcessWorker, "poll", broken)
    code, line, found = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:arm", "--control_hz=20", "--duration_s=60"
    )
    assert (code, line["is_at_rest"]) == (1, True)
    assert found["ending"]["fault"]["message"] == "Ran out of input"
    assert "in broken" in found["ending"]["fault"]["trace"]
    assert arm[-1] == "closed"
    assert arm[-2][:3].tolist() == [0.0, 0.0, 0.0]


def test_nothing_is_drawn_before_robot_and_worker_are_closed(capsys, bundle, tmp_path, arm, monkeypatch):
    drawn = []

    def draw(folder, found, parts):
        drawn.append((arm[-1], parts.worker.pid, (folder / "results.json").is_file()))
        signal.raise_signal(signal.SIGINT)  # somebody does not want to wait for it

    monkeypatch.setattr("vivace.eval.verbs.run.draw", draw)
    code, line, _ = run(
        capsys, bundle, tmp_path, "--robot.type=users_robot:arm", "--duration_s=0.2", "--draw=true"
    )
    assert (code, line["report"]) == (0, None)
    assert drawn == [("closed", None, True)]


def test_a_second_run_in_the_same_folder_is_refused(capsys, bundle, tmp_path, arm):
    flags = ["--robot.type=users_robot:arm", "--duration_s=0.2"]
    _, _, before = run(capsys, bundle, tmp_path, *flags)
    asked = ["run", f"--bundle={bundle}", f"--output_dir={tmp_path}", *flags]
    assert main(asked) == 2
    assert "holds another run; give another --output_dir, or remove it" in capsys.readouterr().err
    (tmp_path / "results.json").unlink()
    assert main(asked) == 2, "one that has only begun"
    assert before["run"]["ticks"] == len(arm) - 4, "and its robot was told nothing"
    assert arm[-2:] == ["closed", "closed"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [("/proc/x", "the folder /proc/x cannot be made"), ("/proc", "/proc cannot be written to")],
)
def test_a_folder_that_cannot_be_written_is_one_line(capsys, bundle, arm, folder, message):
    asked = ["run", f"--bundle={bundle}", f"--output_dir={folder}", "--robot.type=users_robot:arm"]
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert message in told.strip().splitlines()[-1]
    assert "Traceback" not in told
    assert arm == ["closed"]


def test_a_full_disk_is_one_line_once_the_robot_is_closed(capsys, bundle, tmp_path, arm, monkeypatch):
    def full(path, text, **options):
        assert arm[-1] == "closed"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vivace.eval.output.Path.write_text", full)
    flags = ["--robot.type=users_robot:arm", "--duration_s=0.2", f"--output_dir={tmp_path}"]
    assert main(["run", f"--bundle={bundle}", *flags]) == 2
    told = capsys.readouterr()
    assert "results.json cannot be written (No space left on device); make room" in told.err.splitlines()[-1]
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file of settings at config_path="),
        ("", "holds no settings but NoneType"),
        ("- 1\n- 2\n", "holds no settings but list"),
        ("hello", "holds no settings but str"),
        ("colour: red", "The fields `colour` are not valid for RunCommand"),
        ("a: [1", "Failed to load config from"),
    ],
)
def test_a_file_of_settings_must_hold_settings(capsys, tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_text(content)
    for flags in ([f"--config_path={path}"], ["--config_path", str(path)]):
        assert main(["run", *flags]) == 2
        told = capsys.readouterr()
        assert message in told.err.strip().splitlines()[-1]
        assert "Traceback" not in told.err


def test_a_rate_that_cannot_be_met_is_refused_before_the_first_command(capsys, bundle, tmp_path, arm):
    flags = ["--robot.type=users_robot:arm", f"--output_dir={tmp_path / 'out'}", "--control_hz=100000"]
    assert main(["run", f"--bundle={bundle}", *flags]) == 2
    told = capsys.readouterr().err
    assert "100000 Hz cannot be met: a chunk takes" in told
    assert arm == ["closed"]
    assert not (tmp_path / "out").exists()


def test_as_on_windows_a_run_needs_no_signals_that_are_not_there(capsys, bundle, tmp_path, arm, monkeypatch):
    for name in ("SIGUSR1", "SIGHUP", "SIGALRM", "setitimer", "pthread_sigmask"):
        monkeypatch.delattr(signal, name)
    monkeypatch.setattr("select.select", lambda *lists: pytest.fail("Windows selects sockets only"))
    code, _, found = run(capsys, bundle, tmp_path, "--robot.type=users_robot:arm", "--duration_s=0.3")
    assert code == 0
    assert found["run"]["ticks"] == len(arm) - 2 > 0


BAD = [
    ([], "vivace run needs --bundle: a folder that vivace export wrote"),
    (["--bundle=nowhere"], "no manifest.json in nowhere; make a bundle: vivace export"),
    (["--bundle=B", "--control_hz=0"], "control_hz=0.0; a rate above 0 Hz is needed"),
    (["--bundle=B", "--control_hz=-5"], "control_hz=-5.0; a rate above 0 Hz is needed"),
    (["--bundle=B", "--duration_s=-1"], "duration_s=-1.0; a finite number, 0 or more"),
    (["--bundle=B", "--loop.mode=fast"], "mode='fast' is unknown; the modes: sync, async, rtc"),
    (["--bundle=B", "--loop.n_action_steps=99"], "n_action_steps=99, but a chunk has 7 actions"),
    (["--bundle=B", "--robot.type=hal"], "robot 'hal' is not known; known: dataset, lerobot"),
    (["--bundle=B", "--robot.task=rech-v3"], "has no task 'rech-v3'; the nearest"),
    (
        ["--bundle=B", "--robot.options={arms: 2}"],
        "unexpected keyword argument 'arms'; it takes viewer, max_steps",
    ),
    (["--bundle=B", "--viewer=true"], "a viewer needs a display and there is none"),
    (["--bundle=B", "--rerun=run.rrd", "--output_dir=out"], "needs the package rerun-sdk"),
    (["--bundle=B", "--limits=none.yaml"], "no limits file at none.yaml"),
    (["--bundle=B", "--loop.threads=2"], "loop.threads is called inference.threads now"),
    (["--bundle=B", "--watchdog.frozen_s=2"], "watchdog.frozen_s is called watchdog.stuck_s now"),
    (["--bundle=B", "--inference.threads=-1"], "inference.threads=-1; at least 1 thread is needed"),
    (["--bundle=B", "--inference.threads=0"], "inference.threads=0; at least 1 thread is needed"),
    (["--bundle=B", "--inference.warmup=0"], "inference.warmup=0; at least 1 chunk is needed"),
    (["--bundle=B", "--inference.stall_s=0"], "inference.stall_s=0.0; seconds above 0 are needed"),
    (["--bundle=B", "--robot.patience_s=-1"], "robot.patience_s=-1.0; seconds, 0 or more, are needed"),
    (["--bundle=B", "--log.files=0"], "log: file_mb=32.0, files=0; needed: above 0, and 1 or more"),
    (["--bundle=B", "--robot.type=users_robot:shy"], "cannot be used (RuntimeError: motor 3 is missing)"),
    (["--bundle=B", "--watchdog.hold_s=-1"], "watchdog: hold_s=-1"),
    (["--bundle=B", "--realtime.fifo_priority=100"], "fifo_priority=100"),
    (["--bundle=B", "--require=[run.speed>=1]"], "requirement 'run.speed>=1' cannot be read"),
    (["--bundle=B", "--robot.type=users_robot:three"], "have 3 dimensions (a, b, c), the bundle's 4"),
    (["--bundle=B", "--robot.type=users_robot:blind"], "the policy needs 'observation.state' of shape (39,)"),
    (["--bundle=B", "--robot.type=users_robot:lost"], "does not say what to hold before the first action"),
    (["--bundle=B", "--inference.providers=[tpu]"], "execution provider 'tpu' is not one of"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(capsys, bundle, tmp_path, monkeypatch, arm, flags, message):
    monkeypatch.setitem(sys.modules, "rerun", None)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    robot = sys.modules["users_robot"].Arm

    def fails(self):
        raise RuntimeError("motor 3 is missing")

    kinds = {
        "three": {"action_names": ("a", "b", "c")},
        "blind": {"observe": lambda self: Observation({"joints": np.zeros(3)}, 0, 0.0)},
        "lost": {"initial_action": None},
        "shy": {"__init__": fails},
    }
    for name, changes in kinds.items():
        monkeypatch.setattr(sys.modules["users_robot"], name, type(name, (robot,), changes), raising=False)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["run", *(flag.replace("=B", f"={bundle}") for flag in flags)]) == 2
    told = capsys.readouterr()
    assert message in told.err.strip().splitlines()[-1]
    assert told.out == ""
    assert "Traceback" not in told.err
    assert not (tmp_path / "outputs").exists()


def test_a_ladder_is_timed_and_chosen_from(capsys, bundle, tmp_path):
    other = tmp_path / "faster"
    shutil.copytree(bundle, other)
    code, _, found = run(
        capsys, bundle, tmp_path / "out", "--robot.task=reach-moving", "--control_hz=10", "--duration_s=2",
        "--n_episodes=0", f"--loop.ladder=[{other}]", "--loop.anytime=true", "--video=false",
    )  # fmt: skip
    assert code == 0
    assert [rung["bundle"] for rung in found["ladder"]] == [str(bundle), str(other)]
    assert all(0 < rung["longest_s"] < 5 for rung in found["ladder"])
    assert sum(rung["chosen"] for rung in found["ladder"]) >= found["run"]["chunks"] > 0


def test_a_bundle_is_timed_beside_torch(capsys, bundle, checkpoint, tmp_path):
    command = ["bench", f"--policy.path={checkpoint}", "--env.task=reach-moving", "--bench.compile=false",
               "--bench.repeats=1", "--bench.only=[accelerated]", "--accel.episodes=1", "--accel.samples=2",
               "--accel.judged_episodes=1",
               "--accel.judged_samples=2",
               f"--bench.bundles=[{bundle}]", f"--output_dir={tmp_path}"]  # fmt: skip
    assert main(command) == 0
    assert "cold start: a new process" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["pareto"]}
    ours, torchs = rows[f"ort:{bundle}"], rows["accelerated"]
    assert ours["action_error"] == pytest.approx(torchs["action_error"], abs=1e-5)
    assert ours["bundle"]["chunk_error"] <= 1e-5
    assert 0 < ours["latency_s"] < ours["bundle"]["cold_start_s"] < 60
    assert "Exported bundles" in (tmp_path / "report.html").read_text()
    other = tmp_path / "other"
    assert main([*command, "--policy.path=zoo/push", f"--output_dir={other}"]) == 2
    assert "holds another policy" in capsys.readouterr().err
    assert not other.exists()


def test_a_ladder_that_cannot_be_is_refused(capsys, bundle, tmp_path):
    for flags, message in (
        ([f"--loop.ladder=[{bundle}]"], "each may be there once"),
        (["--loop.ladder=[other]", "--loop.mode=sync"], "a ladder needs time to choose by"),
    ):
        assert main(["run", f"--bundle={bundle}", *flags]) == 2
        assert message in capsys.readouterr().err
    other = shutil.copytree(bundle, tmp_path / "other")
    changed = Bundle.load(other)
    replace(changed, spec=replace(changed.spec, action_kinds=(ActionKind.ABSOLUTE,) * 4)).write()
    assert main(["run", f"--bundle={bundle}", f"--loop.ladder=[{other}]"]) == 2
    assert "give bundles of one policy under different plans" in capsys.readouterr().err
