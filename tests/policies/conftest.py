"""What several policies' tests share."""

import pytest

from vivace.policies.block import Compute


class Spy(Compute):
    """Computes everything, and notes which blocks it was asked for."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, block, h, *cond):
        self.seen.append(block.id)
        return super().__call__(block, h, *cond)


@pytest.fixture
def seen():
    """Ids of the blocks that were run, in order."""
    return []


@pytest.fixture
def spying(seen):
    """An action runner that notes every block in `seen`."""
    return lambda index, cache: Spy(seen)
