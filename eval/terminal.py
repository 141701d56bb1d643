"""What a person at the terminal sees; all of it on stderr, so that stdout ends with one JSON line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vivace.deploy.loop.settings import Mode

console = Console(stderr=True)
_FIRST = 34
"""Columns of a terminal that names of rows may take; longer ones are wrapped."""
_AROUND = 3
"""What stands around a cell: two spaces and a line."""


def progress() -> Progress:
    """Bars with a count and the time that is left; nothing where no terminal shows them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def milliseconds(time_s: float | None, digits: int = 0) -> str:
    """A time [s] in milliseconds; "–" for one that is not known, such as a percentile of too few."""
    return "–" if time_s is None else f"{1e3 * time_s:.{digits}f}"


BEST_SCORE = "mean best score (95 %)"
"""What a column of scores is called."""


def score_text(score: Mapping[str, Any] | None) -> str:
    """Return a mean score with its interval in words; a dash of a world without a score."""
    if score is None:
        return "–"
    if score["interval"] is None:
        return f"{score['mean']:.3f}"
    low, high = score["interval"]
    return f"{score['mean']:.3f} ({low:.3f} … {high:.3f})"


def lateness_head(mode: str) -> str:
    """Return what `lateness` gives in a mode, in words."""
    return "stood still" if mode == Mode.SYNC else "deadlines missed"


def lateness(run: Mapping[str, Any], mode: str, control_hz: float) -> str:
    """Say how many deadlines a run missed or, in sync mode, how long the robot stood still.

    There no chunk has a deadline, since the robot waits for each.

    Args:
        run: "ticks" {"chunk", "stale", "fallback"}, "deadline_misses" and "chunks".
        mode: that it ran in.
        control_hz: control rate [Hz].
    """
    if mode != Mode.SYNC:
        return f"{run['deadline_misses']} of {run['chunks']}"
    still, ticks = run["ticks"]["fallback"], max(1, sum(run["ticks"].values()))
    return f"{still / ticks:.0%} ({still / control_hz:.1f} s)"


@dataclass(frozen=True)
class FoldingTable:
    """A table for a terminal of any width; rich prints it.

    Columns that do not fit go below the others, with the first column again.
    """

    title: str
    head: Sequence[str]
    """Names of the columns; those of numbers are on the right."""
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Lines beneath."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Print title, parts and notes."""
        yield Text(self.title, style="italic")
        for columns in self._parts(options.max_width):
            yield self._table(columns, options.max_width)
        for note in self.notes:
            yield Text(note, style="dim")

    def _parts(self, width: int) -> Iterator[list[int]]:
        """Columns of each part; at least one besides the first, however narrow the terminal is."""
        first = self._width(0) + _AROUND + 1
        part, used = [0], first
        for column in range(1, len(self.head)):
            wanted = self._width(column) + _AROUND
            if used + wanted > width and len(part) > 1:
                yield part
                part, used = [0], first
            part.append(column)
            used += wanted
        yield part

    def _width(self, column: int) -> int:
        """Columns of the terminal it takes: a head is wrapped between words, numbers are not."""
        words = max((cell_len(word) for word in self.head[column].split()), default=0)
        widest = max([words, *(cell_len(row[column]) for row in self.rows)])
        return max(words, min(widest, _FIRST)) if column == 0 else widest

    def _table(self, columns: Sequence[int], width: int) -> Table:
        made, most = Table(), max(1, width - 3 * _AROUND)
        for column in columns:
            name = escape(self.head[column])
            if column == 0:
                made.add_column(name, overflow="fold", max_width=self._width(0))
            else:
                made.add_column(
                    name, justify="right", overflow="fold", min_width=min(self._width(column), most)
                )
        for row in self.rows:
            made.add_row(*(Text(row[column]) for column in columns))
        return made
