"""However a run ends, the robot's last command is a standstill.

Two hundred endings:  python -m pytest tests/eval/live/test_endings.py --endings=200; some: --endings=50,122
"""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import ending_robot
import numpy as np
import pytest
from ending_robot import FAULTS, Commands

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR2", "SIGXCPU", "SIGPROF")
TERMINALS = ("pipe", "closed", "stopped")
PATIENCE_S = 900.0
DURATION_S = 2.5
MOST_BYTES = 30_000


@dataclass(frozen=True)
class Ending:
    """How a run is brought to its end; times are seconds after the first command."""

    number: int
    fault: str = ""
    at_s: float = 0.0
    signals: tuple[tuple[float, str], ...] = ()
    terminal: str = "pipe"
    kills_inference: bool = False
    is_disk_full: bool = False
    before_it_moves: bool = False


FIRST = (
    {"signals": tuple((0.3 + 0.04 * n, "SIGINT") for n in range(10))},
    {"signals": ((0.3, "SIGHUP"),)},
    {"signals": ((0.3, "SIGQUIT"), (0.35, "SIGTSTP"))},
    {"terminal": "closed", "at_s": 0.3},
    {"terminal": "stopped", "fault": "prints a lot", "at_s": 0.2, "signals": ((1.0, "SIGTERM"),)},
    {"fault": "observe raises", "at_s": 0.2},
    {"fault": "act raises at times"},
    {"fault": "observe blocks", "at_s": 0.2, "signals": ((0.5, "SIGINT"),)},
    {"fault": "worker raises", "at_s": 0.2, "is_disk_full": True},
    {"kills_inference": True, "at_s": 0.3},
    {"terminal": "stopped", "before_it_moves": True, "signals": ((2.0, "SIGINT"),)},
)
"""What the everyday suite tries."""


def drawn(number):
    """Return the ending of a number: the first are chosen, the others drawn."""
    if number < len(FIRST):
        return Ending(number, **FIRST[number])
    random = np.random.default_rng(number)
    signals = ()
    if random.random() < 0.7:
        n = int(random.choice([1, 1, 2, 3, 10]))
        times = np.cumsum([random.uniform(0, 1.5), *random.exponential(0.1, n - 1)])
        signals = tuple((float(t), str(random.choice(SIGNALS))) for t in times)
    return Ending(
        number,
        fault=str(random.choice(FAULTS)) if random.random() < 0.6 else "",
        at_s=float(random.uniform(0, 1.2)),
        signals=signals,
        terminal=str(random.choice(TERMINALS, p=[0.6, 0.2, 0.2])),
        kills_inference=bool(random.random() < 0.2),
        is_disk_full=bool(random.random() < 0.2),
        before_it_moves=bool(random.random() < 0.1),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from tiny_bundle import export_tiny

    from vivace.policies.spec import ActionKind

    return export_tiny(tmp_path_factory.mktemp("base"), kinds=(ActionKind.VELOCITY,) * 3)


class Process:
    """One run, its terminal and what its robot was told."""

    def __init__(self, ending, bundle, folder):
        folder.mkdir()
        self.ending, self.folder = ending, folder
        self.commands = Commands(folder / "commands")
        options = {"commands": str(folder / "commands"), "fault": ending.fault, "at_s": ending.at_s}
        options = json.dumps(options | {"seed": ending.number})
        command = [
            sys.executable, "-m", "vivace.eval.cli", "run", f"--bundle={bundle}",
            "--robot.type=ending_robot:base", f"--robot.options={options}", "--robot.patience_s=0.3",
            "--control_hz=40", f"--duration_s={DURATION_S}", "--inference.threads=1", "--watchdog.hold_s=0.6",
            "--watchdog.misses=0", f"--output_dir={folder / 'out'}",
        ]  # fmt: skip
        paths = [str(Path(ending_robot.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.ours, theirs = pty.openpty() if ending.terminal != "pipe" else (None, None)
        with (folder / "told").open("wb") as told:
            self.process = subprocess.Popen(
                command,
                stdin=theirs if theirs is not None else subprocess.DEVNULL,
                stdout=theirs if theirs is not None else told,
                stderr=theirs if theirs is not None else told,
                env=environment,
                preexec_fn=self._prepare,
            )
        if theirs is not None:
            os.close(theirs)

    def _prepare(self):
        """In the new process: a session of its own whose terminal is standard input, and a full disk."""
        os.setsid()
        if self.ending.terminal != "pipe":
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if self.ending.is_disk_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))

    def play(self):
        """Bring it to its end; returns the exit code."""
        ending = self.ending
        try:
            moves = lambda: len(self.commands) > 0  # noqa: E731
            self._until(moves if not ending.before_it_moves else self._has_loaded)
            began, told = time.monotonic(), [*ending.signals]
            if ending.terminal == "stopped":
                os.write(self.ours, b"\x13")  # Ctrl-S
            is_open, kills = ending.terminal == "closed", ending.kills_inference
            while self.process.poll() is None:
                passed = time.monotonic() - began
                assert passed < PATIENCE_S, "it hangs"
                if told and passed >= told[0][0]:
                    self.process.send_signal(getattr(signal, told.pop(0)[1]))
                if is_open and passed >= ending.at_s:
                    is_open = bool(os.close(self.ours))
                    self.ours = None
                if kills and passed >= ending.at_s:
                    kills = bool(self._kill_inference())
                if ending.terminal == "stopped" and (self.folder / "out" / "results.json").exists():
                    os.write(self.ours, b"\x11")  # Ctrl-Q: what is said at the very end may wait for it
                    self._drain()
                time.sleep(0.005)
        finally:
            self.process.kill()
            if self.ours is not None:
                os.close(self.ours)
        return self.process.wait()

    def _until(self, is_true):
        ends = time.monotonic() + PATIENCE_S
        while not is_true() and self.process.poll() is None:
            assert time.monotonic() < ends, "it never moves"
            if self.ending.terminal != "pipe":
                self._drain()
            time.sleep(0.005)

    def _has_loaded(self):
        return bool(self._inference())

    def _drain(self):
        os.set_blocking(self.ours, False)
        try:
            with (self.folder / "told").open("ab") as told:
                told.write(os.read(self.ours, 100_000))
        except OSError:
            pass

    def _inference(self):
        """Process id of inference, which is started last."""
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            spawned = [n for n in children if b"spawn_main" in Path(f"/proc/{n}/cmdline").read_bytes()]
            return [int(n) for n in spawned[-1:]]
        except OSError:
            return []

    def _kill_inference(self):
        for pid in self._inference():
            os.kill(pid, signal.SIGKILL)


@dataclass
class Outcome:
    ending: Ending
    code: int
    told: np.ndarray = field(repr=False)
    text: str
    results: dict | None = field(repr=False)

    @property
    def is_at_rest(self):
        return len(self.told) == 0 or not self.told[-1].any()

    @property
    def has_traceback(self):
        """Not counting what Python says of a Ctrl-C that comes while it tidies up, once all is done."""
        lines = ["", *self.text.splitlines()]
        return any(
            line.startswith("Traceback") and not before.startswith("Exception ignored")
            for before, line in pairwise(lines)
        )


def end(ending, bundle, folder):
    process = Process(ending, bundle, folder / f"{ending.number}")
    code = process.play()
    path = process.folder / "out" / "results.json"
    results = json.loads(path.read_text()) if path.exists() else None
    text = (process.folder / "told").read_text(errors="replace")
    return Outcome(ending, code, process.commands.all(), text, results)


@pytest.fixture(scope="module")
def outcomes(bundle, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("endings")
    asked = request.config.getoption("--endings")
    numbers = map(int, asked.split(",")) if "," in asked else range(int(asked))
    endings = [drawn(number) for number in numbers]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda ending: end(ending, bundle, folder), endings))


def test_the_last_command_is_a_standstill(outcomes):
    moving = [outcome for outcome in outcomes if not outcome.is_at_rest]
    assert not moving, f"{len(moving)} of {len(outcomes)} are still moving"


def test_these_robots_did_move(outcomes):
    moved = [outcome.told.any() for outcome in outcomes if not outcome.ending.before_it_moves]
    assert not moved or np.mean(moved) >= 0.8


def test_every_run_that_moved_left_its_results_and_no_traceback(outcomes):
    for outcome in outcomes:
        if len(outcome.told) and not outcome.ending.is_disk_full:
            assert outcome.results is not None, outcome
            is_told = outcome.ending.fault != "act blocks"  # nobody can say it of a robot that takes none
            assert outcome.results["ending"]["is_at_rest"] or not is_told, outcome
        assert not outcome.has_traceback, outcome
        late = [
            -getattr(signal, name) for _, name in outcome.ending.signals
        ]  # once all is done it is a process
        assert outcome.code in (0, 1, 2, 7, 130, *late), outcome
