"""Small text files that somebody wrote: regular, bounded, UTF-8."""

import os
import stat
from pathlib import Path

from vivace.policies.errors import BadSetting


def read_text(path: Path, largest: int, what: str) -> str:
    """Return what a file holds.

    Args:
        path: the file.
        largest: most bytes it may have.
        what: it is, for the message, such as "limits file".

    Raises:
        BadSetting: there is none, it is no regular file, too large, not UTF-8, or cannot be read.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(
            found.st_mode
        ):  # opening a fifo waits for ever, opening a device may do something
            raise BadSetting(f"{what} {path} is no regular file; give one that is")
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except (OSError, ValueError) as error:
        raise BadSetting(f"{what} {path} cannot be read ({error}); check its path and permissions") from error
    if len(data) > largest:
        raise BadSetting(f"{what} {path} has more than {largest} bytes; no such file needs as many")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSetting(f"{what} {path} is not UTF-8 ({error}); save it as such") from error
