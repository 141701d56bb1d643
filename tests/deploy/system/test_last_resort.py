"""An error that nobody foresaw is one line, and its trace a file (issue 17, section 5)."""

import errno
import resource
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from vivace.deploy.ros2 import node
from vivace.deploy.system.last_resort import last_line


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("VIVACE_TRACEBACK", raising=False)
    return folder


def caught(function) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011
        function()
    return info.value


def deep(n=0):
    return deep(n + 1)


class Mute(Exception):
    def __str__(self):
        raise ValueError("I say nothing")


def mute():
    raise Mute


@pytest.mark.parametrize(("function", "told"), [
    (lambda: 1 / 0, "ended by an unexpected ZeroDivisionError (division by zero)"),
    (lambda: {}["a\nb"], "ended by an unexpected KeyError ('a\\nb')"),
    (deep, "ended by an unexpected RecursionError (maximum recursion depth exceeded)"),
    (lambda: bytes(1 << 60), "ended by an unexpected MemoryError"),
    (mute, "ended by an unexpected Mute"),
    (lambda: int("9" * 4000 + "x"), "ended by an unexpected ValueError"),
])  # fmt: skip
def test_one_line_says_what_and_where_the_trace_is(function, told, temporary):
    line = last_line(caught(function), "vivace eval")
    (file,) = temporary.iterdir()
    assert line.startswith(f"vivace eval: {told}")
    assert line.endswith(f"; its trace is in {file}; VIVACE_TRACEBACK=1 prints it")
    assert len(line.splitlines()) == 1
    assert len(line) < 600
    assert file.name.startswith("vivace-eval-")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "Traceback (most recent call last)" in file.read_text()
    assert "Python 3." in file.read_text()


def test_the_trace_goes_where_the_results_do(tmp_path, temporary):
    line = last_line(caught(lambda: 1 / 0), "vivace bench", str(tmp_path))
    assert f"its trace is in {tmp_path}/vivace-bench-" in line
    assert not list(temporary.iterdir())
    assert str(temporary) in last_line(caught(lambda: 1 / 0), "vivace bench", str(tmp_path / "nowhere"))


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, temporary):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        line = last_line(caught(lambda: 1 / 0), "vivace eval", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"its trace could not be kept (OSError: [Errno {errno.EFBIG}]" in line
    assert not [path for path in (*tmp_path.iterdir(), *temporary.iterdir()) if path.is_file()]


def test_the_trace_is_printed_on_request(temporary, monkeypatch, capsys):
    monkeypatch.setenv("VIVACE_TRACEBACK", "1")
    line = last_line(caught(lambda: 1 / 0), "vivace eval")
    assert line == "vivace eval: ended by an unexpected ZeroDivisionError (division by zero)"
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert not list(temporary.iterdir())


def test_the_ros_node_ends_in_a_line_too(temporary, monkeypatch, capsys):
    monkeypatch.setattr(node, "_main", lambda arguments: {}["odom"])
    assert node.main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("vivace-ros: ended by an unexpected KeyError ('odom'); its trace is in ")
    assert len(told.splitlines()) == 1


def test_a_library_that_ros_lacks_is_named(monkeypatch, capsys):
    class Finder:
        def find_spec(self, name, *_):
            if name == "rclpy":
                raise ImportError("librcl.so: cannot open shared object file", name="rclpy")

    monkeypatch.delitem(sys.modules, "vivace.deploy.ros2.process", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rclpy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert node.main(["--ros-args"]) == 2
    told = capsys.readouterr().err
    assert "no package 'rclpy' that can be used (librcl.so: cannot open shared object file); source a" in told
