"""Processes that burn the CPU beside a loop, to see what its ticks do then."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context


@contextmanager
def cpu_load(n: int) -> Iterator[None]:
    """Run `n` busy processes meanwhile."""
    context = get_context("spawn")
    processes = [context.Process(target=_burn, args=(os.getpid(),), daemon=True) for _ in range(n)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _burn(parent: int) -> None:
    number = 1
    while os.getppid() == parent:
        for _ in range(1_000_000):
            number = number * 1103515245 % 2147483647
