"""What is kept and shown of a run while it lasts."""

import io
import json
import mmap
import os
import pty
import sys
import threading

import numpy as np
import pytest
from rich.console import Console

from vivace.deploy.loop.loop import Source, TickRecord
from vivace.deploy.loop.pace import Beat
from vivace.deploy.loop.watchdog import State, Transition
from vivace.eval.live.recorder import Recorder, resident_mb
from vivace.eval.live.screen import Screen, unbuffered
from vivace.eval.simulation.trace import write_run_trace


def record(tick, time_s, source=Source.CHUNK, asked=False, latency_s=None):
    return TickRecord(
        tick=tick, source=source, action=np.zeros(2, np.float32), chunk_id=0, age_ticks=0, has_asked=asked,
        has_accepted=latency_s is not None, is_guarded=False, remaining=5, beat=Beat(tick, time_s, 0.002, 0),
        ended_s=time_s + 0.003, latency_s=latency_s, has_missed=False, state=State.RUN,
    )  # fmt: skip


def test_figures_are_shown_in_a_terminal_and_all_is_written(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120)
    kept = Recorder(tmp_path, 50.0, screen=Screen(console))
    began = kept.began_s
    kept.tick(record(0, began, Source.FALLBACK, asked=True))
    kept.tick(record(1, began + 0.02, latency_s=0.015))
    kept.changed(Transition(began + 0.03, State.RUN, State.STOP, "the camera froze"))
    kept.close()
    shown = screen.getvalue()
    words = " ".join(shown.split())
    assert "1 fallback; stood still 0.0 s, 0 deadlines missed, 0 skipped, 0 guarded, queue 5" in words
    assert "run → stop: the camera froze; Enter or SIGUSR1 releases the robot, Ctrl-C ends the run" in words
    inference = [line for line in shown.splitlines() if "inference" in line][-1]
    assert "15.00" in inference
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["tick", "tick", "event"]
    assert list(kept.events) == lines[2:]
    assert [source for source, _ in kept.film] == ["fallback", "chunk"]
    first, largest, last = kept.memory_mb
    assert 0 < first <= largest
    assert 0 < last <= largest


def test_without_a_terminal_nothing_is_drawn(tmp_path):
    text = io.StringIO()
    kept = Recorder(tmp_path, 50.0, screen=Screen(Console(file=text)))
    kept.close()
    assert text.getvalue() == ""


def test_a_log_that_cannot_be_begun_is_somebody_elses(tmp_path):
    kept = Recorder(tmp_path, 50.0)
    with pytest.raises(FileExistsError):
        Recorder(tmp_path, 50.0)
    kept.close()


class Stuck(io.StringIO):
    """A terminal that was stopped: whoever writes waits."""

    def __init__(self):
        super().__init__()
        self.goes_on, self.is_reached = threading.Event(), threading.Event()

    def write(self, text):
        self.is_reached.set()
        assert self.goes_on.wait(60)
        return super().write(text)


def test_a_stopped_terminal_holds_nobody_up(tmp_path):
    terminal = Stuck()
    kept = Recorder(tmp_path, 50.0, screen=Screen(Console(file=terminal, force_terminal=True)))
    kept.screen.say("first")
    assert terminal.is_reached.wait(60)
    with kept.screen.captured():
        for n in range(5000):  # all of this returns at once, or the test never ends
            kept.changed(Transition(kept.began_s, State.RUN, State.HOLD, "why"))
            kept.tick(record(n, kept.began_s))
            print("a driver says something")
    assert kept.screen.dropped > 8000
    kept.close()
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) + kept.log.dropped == 10_000
    terminal.goes_on.set()


def test_a_terminal_that_is_gone_is_left_alone(tmp_path):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        os.close(ours)
        screen = Screen(Console(file=unbuffered(stream), force_terminal=True))
        screen.say("is anybody there?")
        screen.close(60.0)
        screen.say("no")
        assert screen.dropped == 1


def test_what_is_printed_comes_by_lines_and_an_unbuffered_stream_keeps_nothing_back():
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as writer:
        screen = Screen(Console(file=unbuffered(writer), width=80))
        with screen.captured():
            print("[a]", 1, end="")
            print("", 2, file=sys.stderr)
            print("é")
        screen.close(60.0)
        assert [reader.readline() for _ in range(2)] == ["[a] 1é\n", " 2\n"][::-1]


def test_memory_is_that_of_this_process():
    before = resident_mb()
    with mmap.mmap(-1, 40_000_000) as held:  # pages that nobody had before
        np.frombuffer(held, np.uint8)[::1000] = 1
        assert resident_mb() - before == pytest.approx(40, abs=5)


def test_the_trace_of_a_run_has_ticks_inferences_queue_and_events(tmp_path):
    lines = [
        {"kind": "tick", "tick": 0, "time_s": 0.0, "work_s": 0.002, "source": "fallback", "remaining": 0,
         "asked": True, "latency_s": None},
        {"kind": "event", "event": "worker", "time_s": 0.01, "why": "it died"},
        {"kind": "tick", "tick": 1, "time_s": 0.05, "work_s": 0.001, "source": "chunk", "remaining": 7,
         "asked": True, "latency_s": 0.03},
        {"kind": "tick", "tick": 2, "time_s": 0.1, "work_s": 0.001, "source": "chunk", "remaining": 6,
         "asked": False, "latency_s": 0.04},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    first, rest = text.split("\n", 1)
    (tmp_path / "run.jsonl.1").write_text(first + "\n")
    (tmp_path / "run.jsonl").write_text(rest + '{"kind": "tick", "cut of')
    write_run_trace(tmp_path / "trace.json", tmp_path / "run.jsonl", control_hz=20)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("tick 0", 0, 2000), ("fallback", 0, 50_000),
        ("tick 1", 50_000, 1000), ("chunk", 50_000, 50_000), ("inference", 0, 30_000),
        ("tick 2", 100_000, 1000), ("chunk", 100_000, 50_000), ("inference", 50_000, 40_000),
    ]  # fmt: skip
    assert [e["args"]["actions"] for e in events if e["ph"] == "C"] == [0, 7, 6]
    assert [(e["name"], e["ts"]) for e in events if e["ph"] == "i"] == [("worker: it died", 10_000)]
