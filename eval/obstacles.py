"""What a computer or a command lacks, told in a line: everything that a user can mend."""

import errno

from vivace.policies.errors import VivaceError
from vivace.policies.extras import how_to_install

_NO_PLACE = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM")
"""Errors of files that say something about the place they are in."""


def obstacle(error: BaseException) -> str:
    """Say what was in the way and what to do about it; empty for an error that nobody foresaw."""
    if isinstance(error, VivaceError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "nobody reads its output any more"
    if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _NO_PLACE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; make room, get access to it, or take another place"
    if isinstance(error, ImportError) and (told := how_to_install(error)):
        return told
    from vivace.envs.opengl import why_not_drawn

    return why_not_drawn(error)


def in_a_line(error: BaseException) -> str:
    """An obstacle, or whatever else went wrong, where the rest goes on without what failed."""
    return obstacle(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
