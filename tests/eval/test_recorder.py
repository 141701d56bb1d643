"""What is kept and shown of a run while it lasts."""

import io
import json
import mmap
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from vivace.deploy.loop import Source, TickRecord
from vivace.deploy.pace import Beat
from vivace.deploy.watchdog import State, Transition
from vivace.eval import recorder as module
from vivace.eval.interrupts import Interrupts
from vivace.eval.recorder import Recorder, resident_mb
from vivace.eval.trace import write_run_trace


def record(tick, time_s, source=Source.CHUNK, asked=False, latency_s=None):
    return TickRecord(
        tick=tick, source=source, action=np.zeros(2, np.float32), chunk_id=0, age_ticks=0, has_asked=asked,
        has_accepted=latency_s is not None, is_guarded=False, remaining=5, beat=Beat(tick, time_s, 0.002, 0),
        ended_s=time_s + 0.003, latency_s=latency_s, has_missed=False, state=State.RUN,
    )  # fmt: skip


@pytest.fixture
def screen(monkeypatch):
    """A terminal that is a text."""
    text = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=text, force_terminal=True, color_system=None))
    return text


def test_figures_are_shown_in_a_terminal_and_all_is_written(screen, tmp_path):
    kept = Recorder(tmp_path, 50.0)
    began = kept.began_s
    kept.tick(record(0, began, Source.FALLBACK, asked=True))
    kept.tick(record(1, began + 0.02, latency_s=0.015))
    kept.changed(Transition(began + 0.03, State.RUN, State.STOP, "the camera froze"))
    kept.close()
    shown = screen.getvalue()
    words = " ".join(shown.split())
    assert "2 ticks: 1 chunk, 0 stale, 1 fallback; 0 deadlines missed, 0 skipped, 0 guarded, queue 5" in words
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


def test_without_a_terminal_nothing_is_drawn(monkeypatch, tmp_path):
    text = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=text))
    kept = Recorder(tmp_path, 50.0)
    kept.close()
    assert text.getvalue() == ""


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
    (tmp_path / "run.jsonl").write_text(text + '{"kind": "tick", "cut of')
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


def test_a_second_ctrl_c_is_one():
    with Interrupts() as interrupts:
        assert not interrupts.wants_end
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.wants_end
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_enter_releases_at_a_terminal(monkeypatch):
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        terminal = SimpleNamespace(isatty=lambda: True, readline=stdin.readline, fileno=stdin.fileno)
        monkeypatch.setattr(sys, "stdin", terminal)
        with Interrupts() as interrupts:
            assert not interrupts.release_wanted()
            os.write(write, b"\n")
            assert interrupts.release_wanted()
            assert not interrupts.release_wanted()
    os.close(write)
