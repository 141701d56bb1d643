"""A log that never blocks and loses nothing silently; statistics that add up."""

import json
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from vivace.deploy.loop.loop import Source, TickRecord
from vivace.deploy.loop.pace import Beat
from vivace.deploy.loop.watchdog import State
from vivace.deploy.telemetry.rerun_stream import RerunStream
from vivace.deploy.telemetry.run_log import JsonLines, RunLog, event_line, log_parts, tick_line
from vivace.deploy.telemetry.statistics import LoopStatistics
from vivace.policies.errors import BadSetting


def record(tick=0, source=Source.CHUNK, skipped=0, late_s=0.001, latency_s=None, action=(0.5, 1.0), **more):
    options = {"has_asked": False, "is_guarded": False, "remaining": 3, "has_missed": False} | more
    return TickRecord(
        tick=tick,
        source=source,
        action=np.array(action, np.float32),
        chunk_id=None,
        age_ticks=None,
        has_accepted=latency_s is not None,
        beat=Beat(tick, 100 + tick, late_s, skipped),
        ended_s=100 + tick + 0.002,
        latency_s=latency_s,
        state=State.RUN,
        **options,
    )


class Slow:
    """A sink that waits to be let go."""

    def __init__(self):
        self.has_some, self.go, self.lines, self.is_closed = threading.Event(), threading.Event(), [], False

    def write(self, lines):
        self.has_some.set()
        self.go.wait(20)
        self.lines += lines

    def close(self):
        self.is_closed = True


def test_every_line_reaches_the_file_in_order(tmp_path):
    log = RunLog([JsonLines(tmp_path / "run.jsonl")])
    for tick in range(1000):
        log.write(tick_line(record(tick), 100.0))
    log.write(event_line("watchdog", 101.5, 100.0, before="run", after="hold", why="x"))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["tick"] for line in lines[:-1]] == list(range(1000))
    assert lines[3] == {
        "kind": "tick", "tick": 3, "time_s": 3.0, "late_s": 0.001, "work_s": 0.002, "skipped": 0,
        "source": "chunk", "state": "run", "chunk": None, "age_ticks": None, "asked": False,
        "latency_s": None, "missed": False, "guarded": False, "remaining": 3, "action": [0.5, 1.0],
    }  # fmt: skip
    assert lines[-1] == {
        "kind": "event", "event": "watchdog", "time_s": 1.5, "before": "run", "after": "hold", "why": "x"
    }  # fmt: skip
    assert (log.dropped, log.errors) == (0, [])


def test_a_full_queue_drops_and_counts_and_never_waits():
    sink = Slow()
    log = RunLog([sink], size=10)
    log.write({"tick": 0})
    assert sink.has_some.wait(20)  # the thread is busy with the first one
    for tick in range(1, 100):
        log.write({"tick": tick})
    assert log.dropped == 89
    sink.go.set()
    log.close()
    assert [line["tick"] for line in sink.lines] == list(range(11))
    assert sink.is_closed


def test_a_disk_that_does_not_answer_is_not_waited_for_for_ever():
    sink = Slow()
    log = RunLog([sink], size=2)
    log.write({"tick": 0})
    assert sink.has_some.wait(20)
    for tick in range(1, 6):
        log.write({"tick": tick})
    log.close(0.01)
    assert log.errors == ["the log was not written within 0.01 s"]
    assert log.dropped == 5
    sink.go.set()


def test_a_log_is_bounded_and_its_parts_are_in_order(tmp_path):
    path = tmp_path / "run.jsonl"
    lines = JsonLines(path, most_bytes=100, files=3)
    for tick in range(100):
        lines.write([{"tick": tick}])
    lines.close()
    parts = log_parts(path)
    assert [part.name for part in parts] == ["run.jsonl.2", "run.jsonl.1", "run.jsonl"]
    assert all(part.stat().st_size <= 120 for part in parts)
    ticks = [json.loads(line)["tick"] for part in parts for line in part.read_text().splitlines()]
    assert ticks == list(range(ticks[0], 100))
    assert len(ticks) >= 14
    assert log_parts(tmp_path / "other.jsonl") == []


def test_a_log_of_one_file_begins_anew(tmp_path):
    lines = JsonLines(tmp_path / "run.jsonl", most_bytes=50)
    for tick in range(100):
        lines.write([{"tick": tick}])
    lines.close()
    assert log_parts(tmp_path / "run.jsonl") == [tmp_path / "run.jsonl"]
    assert (tmp_path / "run.jsonl").stat().st_size < 70


def test_somebody_elses_log_is_not_written_over(tmp_path):
    (tmp_path / "run.jsonl").write_text("theirs")
    with pytest.raises(FileExistsError):
        JsonLines(tmp_path / "run.jsonl")
    assert (tmp_path / "run.jsonl").read_text() == "theirs"


def test_a_sink_that_fails_is_left_out_and_said():
    class Broken:
        def write(self, lines):
            raise OSError("the disk is full")

        def close(self):
            raise AssertionError("it was left out")

    good = Slow()
    good.go.set()
    log = RunLog([Broken(), good])
    log.write({"tick": 0})
    log.close()
    assert log.errors == ["Broken: OSError: the disk is full"]
    assert good.lines == [{"tick": 0}]
    log.close()  # again: nothing happens


def test_a_log_holds_something():
    with pytest.raises(BadSetting, match="size=0"):
        RunLog([], size=0)


def test_infinity_is_written_as_json_knows_it():
    line = tick_line(record(action=(float("inf"), 0.0)), 0.0)
    assert json.loads(json.dumps(line, allow_nan=False))["action"] == [None, 0.0]


def test_statistics_add_up():
    statistics = LoopStatistics(control_hz=20)
    for tick in range(98):
        statistics.add(record(tick, latency_s=0.1 if tick % 10 == 0 else None, has_asked=tick % 10 == 0))
    statistics.add(record(98, Source.FALLBACK, skipped=8, late_s=0.4, has_missed=True, remaining=0))
    statistics.add(record(107, Source.STALE, is_guarded=True, remaining=5000))
    found = statistics.summary()
    assert (found["ticks"], found["skipped_deadlines"], found["undecided_ticks"]) == (100, 8, 0)
    assert found["sources"] == {"chunk": 98, "stale": 1, "fallback": 1}
    assert found["states"] == {"run": 100, "hold": 0, "stop": 0}
    assert (found["requests"], found["chunks"], found["deadline_misses"], found["guarded"]) == (10, 10, 1, 1)
    assert found["fresh_share"] == 98 / 108
    assert found["effective_hz"] == pytest.approx(20 * 98 / 108)
    assert found["queue_depth"] == {"p50": 3, "p1": 0, "max": 1024}
    assert found["latency"]["p50_s"] == pytest.approx(0.1, rel=0.01)
    assert (found["jitter"]["max_s"], found["jitter"]["n"]) == (0.4, 100)
    assert found["work"]["p99_s"] == pytest.approx(0.002, rel=0.01)


def test_an_action_that_is_not_finite_would_be_seen():
    statistics = LoopStatistics(20)
    statistics.add(record(action=(float("nan"), 0)))
    assert statistics.summary()["undecided_ticks"] == 1


def test_statistics_of_nothing():
    found = LoopStatistics(20).summary()
    assert (found["ticks"], found["fresh_share"], found["queue_depth"]["p50"]) == (0, 0, 0)


class FakeStream:
    """What of rerun is used; remembers what was logged."""

    def __init__(self, name):
        self.logged, self.at = [], {}

    def set_time(self, timeline, **at):
        self.at[timeline] = at

    def log(self, entity, value):
        self.logged.append((entity, value, dict(self.at)))

    def save(self, path):
        self.target = path

    def spawn(self):
        self.target = "spawned"

    def flush(self):
        self.target = (self.target, "flushed")


def test_rerun_shows_ticks_and_events(monkeypatch):
    fake = SimpleNamespace(RecordingStream=FakeStream, Scalars=lambda v: v, TextLog=lambda t: t)
    monkeypatch.setitem(sys.modules, "rerun", fake)
    stream = RerunStream("viewer")
    stream.write([tick_line(record(7, Source.STALE, latency_s=0.25), 100.0)])
    stream.write([event_line("watchdog", 109.0, 100.0, why="frozen")])
    stream.close()
    logged = {entity: value for entity, value, _ in stream._stream.logged}
    assert logged["loop/late_ms"] == 1.0
    assert logged["loop/latency_ms"] == 250.0
    assert logged["action"] == [0.5, 1.0]
    assert logged["loop/source"] == "stale"
    assert logged["loop/events"] == "watchdog: frozen"
    assert "loop/age_ticks" not in logged
    assert stream._stream.logged[0][2] == {"run": {"duration": 7.0}, "tick": {"sequence": 7}}
    assert stream._stream.target == ("spawned", "flushed")
    assert str(RerunStream("a.rrd")._stream.target) == "a.rrd"


def test_without_rerun_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(BadSetting, match=r"needs the package rerun-sdk; pip install 'vivace\[rerun\]'"):
        RerunStream("viewer")
