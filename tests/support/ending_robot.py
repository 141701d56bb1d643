"""A base that goes on with the last velocity it was told; it keeps what it was told, and fails as asked.

Runs in a process of `vivace run`. Commands go to a file in memory, which no full disk, closed terminal or
sudden end can keep back.
"""

import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np

from vivace.policies.spec import Observation

SIZE, MOST = 3, 20_000
FAULTS = (
    *("observe raises", "observe raises at times", "observe blocks", "observe blocks at times"),
    *("observe gives nonsense", "act raises", "act raises at times", "act blocks"),
    *("worker raises", "exits", "no memory", "close raises", "prints a lot"),
)


class Commands:
    """What a base was told (n, 3), in a file that two processes share."""

    def __init__(self, path):
        path = Path(path)
        if not path.exists():
            path.write_bytes(bytes(8 * (1 + SIZE * MOST)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._values = np.frombuffer(self._map, np.float64)

    def append(self, action):
        n = int(self._values[0])
        self._values[1 + n * SIZE : 1 + (n + 1) * SIZE] = action
        self._values[0] = n + 1

    def __len__(self):
        return int(self._values[0])

    def all(self):
        return self._values[1 : 1 + len(self) * SIZE].reshape(-1, SIZE).copy()


class Base:
    action_names = ("x.vel", "y.vel", "theta.vel")
    initial_action = (0.0, 0.0, 0.0)

    def __init__(self, commands, fault="", at_s=0.0, seed=0):
        self._commands, self._fault, self._at_s = Commands(commands), fault, at_s
        self._random = np.random.default_rng(seed)
        self._began_s = None
        self._tick = 0

    def observe(self):
        self._tick += 1
        if self._is("observe raises") or self._is("observe raises at times", 0.3):
            raise RuntimeError("[TxRxResult] There is no status packet!")
        if self._is("observe blocks"):
            time.sleep(1e6)
        if self._is("observe blocks at times", 0.05):
            time.sleep(1.0)
        if self._is("exits"):
            sys.exit(7)
        if self._is("no memory"):
            raise MemoryError
        if self._is("prints a lot"):
            print("motor 3 is warm\n" * 1000, flush=True)
        if self._is("worker raises"):
            from vivace.deploy.workers.process_worker import ProcessWorker

            ProcessWorker.poll = lambda worker, now: 1 / 0
        size = 7 if self._is("observe gives nonsense") else 5
        return Observation(
            {"observation.state": self._random.uniform(-1, 1, size)}, self._tick, time.monotonic()
        )

    def act(self, action):
        if self._began_s is None:
            self._began_s = time.monotonic()
        is_brief = time.monotonic() - self._began_s < self._at_s + 0.7
        if (self._is("act raises") and is_brief) or self._is("act raises at times", 0.4):
            raise RuntimeError("overload")
        if self._is("act blocks") and is_brief:
            time.sleep(1e6)
        self._commands.append(action)

    def close(self):
        if self._is("close raises"):
            raise OSError("the port is gone")

    def _is(self, fault, chance=1.0):
        """Whether it is time for a fault."""
        has_begun = self._began_s is not None and time.monotonic() - self._began_s >= self._at_s
        return fault == self._fault and has_begun and self._random.random() < chance


def base(commands, fault="", at_s=0.0, seed=0):
    os.umask(0o077)
    return Base(commands, fault, at_s, seed)
