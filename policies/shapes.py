"""Whether shapes may follow what an observation holds, as when a prompt loses its padding.

A graph has the shapes of the observation it was made with and serves all others, so while one is made nothing
is left out that another observation may need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FIXED: ContextVar[bool] = ContextVar("shapes are fixed", default=False)


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """Let shapes follow from shapes alone meanwhile."""
    before = _FIXED.set(True)
    try:
        yield
    finally:
        _FIXED.reset(before)


def are_fixed() -> bool:
    """Whether shapes follow from shapes alone."""
    return _FIXED.get()
