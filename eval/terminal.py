"""What a person at the terminal sees; all of it on stderr, so that stdout ends with one JSON line."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


def progress() -> Progress:
    """Bars with a count and the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def milliseconds(time_s: float | None, digits: int = 0) -> str:
    """A time [s] in milliseconds; "–" for one that is not known, such as a percentile of too few."""
    return "–" if time_s is None else f"{1e3 * time_s:.{digits}f}"


def score_text(score: Mapping[str, Any] | None) -> str:
    """Return a mean score with its interval in words; a dash of a world without a score."""
    if score is None:
        return "–"
    if score["interval"] is None:
        return f"{score['mean']:.3f}"
    low, high = score["interval"]
    return f"{score['mean']:.3f} ({low:.3f} … {high:.3f})"
