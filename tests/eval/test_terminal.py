"""Tables and grids are readable at 80 columns, also where nobody sees a terminal (G15)."""

import io

import pytest
from rich.console import Console

from vivace.eval.terminal import FoldingTable, lateness, lateness_head

HEAD = ("plan", "chunk latency p50 / p99 [ms]", *(f"column {n}" for n in range(9)))
ROWS = [
    ("as trained", "743 / 812", *("0.0512 (0.0101 … 0.1004)",) * 9),
    ("a plan with quite a long name" * 2, *HEAD[1:]),
]


def printed(table: FoldingTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 60, 200, 500])
def test_no_number_is_cut_or_broken_at_any_width(width):
    text = printed(FoldingTable("a title " * 20, HEAD, ROWS, ["left out: x: a [reason]"]), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("0.0512 (0.0101 … 0.1004)") == 9, "each whole, on a line"
    assert text.count("743 / 812") == 1
    assert "left out: x: a [reason]" in text
    parts = text.count("as trained")
    assert (parts == 1) == (width == 500)
    assert all(f"column {n}" in text.replace("\n", " ") for n in range(9))


def test_a_terminal_that_is_too_narrow_for_a_column_still_shows_it():
    text = printed(FoldingTable("", ("plan", "x"), [("a", "1" * 50)]), 30)
    assert sum(line.count("1") for line in text.splitlines()) == 50


def test_a_robot_that_waits_misses_no_deadline():
    """G16: what counts in sync mode is how long it stood still; results of earlier versions have misses."""
    run = {"ticks": {"chunk": 60, "stale": 0, "fallback": 20}, "deadline_misses": 17, "chunks": 17}
    assert (lateness_head("sync"), lateness(run, "sync", 20.0)) == ("stood still", "25% (1.0 s)")
    assert (lateness_head("rtc"), lateness(run, "rtc", 20.0)) == ("deadlines missed", "17 of 17")
