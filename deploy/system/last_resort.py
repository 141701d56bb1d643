"""The last resort of a command: an error that nobody foresaw becomes one line, and its trace a file.

VIVACE_TRACEBACK=1 prints the trace instead.
"""

import os
import platform
import sys
import tempfile
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path

_LONGEST = 300
"""Characters of an error that the line repeats; the trace has them all."""


def wants_trace() -> bool:
    """Whether the trace is to be printed."""
    return os.environ.get("VIVACE_TRACEBACK", "") not in ("", "0")


def last_line(error: BaseException, command: str, folder: str | None = None) -> str:
    """Keep the trace of an error, and return the line that says what happened and where the trace is.

    Args:
        error: what was raised.
        command: what was running, such as "vivace eval".
        folder: where the trace goes if it is there; else, or if it cannot be written there, among the
            system's temporary files.
    """
    if wants_trace():
        traceback.print_exception(error)
        return f"{command}: {_told(error)}"
    return f"{command}: {_told(error)}; {_keep(error, command, folder)}"


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # it cannot even say what it is
        text = ""
    short = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return f"ended by an unexpected {kind}{f' ({short})' if short else ''}"


def _keep(error: BaseException, command: str, folder: str | None) -> str:
    """Write the trace to a new file that only its owner reads; says where, or why not."""
    hint = "VIVACE_TRACEBACK=1 prints it"
    why: BaseException = error
    name = command.replace(" ", "-")
    for place in (folder, None):
        if place is None or Path(place).is_dir():
            try:
                return f"its trace is in {_written(_text(error), name, place)}; {hint}"
            except (OSError, MemoryError, RecursionError) as found:  # no room, on the disk or in memory
                why = found
    return f"its trace could not be kept ({type(why).__name__}: {why}); {hint}"


def _text(error: BaseException) -> str:
    """What is needed to understand it elsewhere."""
    now, python = datetime.now().astimezone().isoformat(timespec="seconds"), platform.python_version()
    head = f"{now}\n{platform.platform()}, Python {python}\n{' '.join(sys.argv)}\n\n"
    return head + "".join(traceback.format_exception(error))


def _written(text: str, name: str, folder: str | None) -> Path:
    """Write a file that was not there before, whole or not at all."""
    number, file = tempfile.mkstemp(prefix=f"{name}-", suffix=".txt", dir=folder)
    try:
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as opened:
            opened.write(text)
    except BaseException:
        with suppress(OSError):
            os.unlink(file)
        raise
    return Path(file)
