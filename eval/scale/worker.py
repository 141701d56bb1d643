"""A worker: loads the policy once, and runs one unit after the other. The same in a process and on Ray."""

import os
import pickle
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.eval.scale.job import Job, Stopwatch, Unit
from vivace.eval.scale.schedule import Done, Result
from vivace.eval.simulation.rollout import Worlds
from vivace.policies.load import LoadedPolicy


@dataclass(frozen=True)
class Start:
    """What a worker begins with."""

    load: Callable[[], LoadedPolicy]
    """Loads the policy; a partial of a function of a module, so that it travels."""
    folder: str
    """Working folder of the command, which names may be relative to."""
    packages: tuple[str, ...]
    """Imported before, for what they register: policies, steps of processors, worlds."""
    threads: int
    """torch's."""


class Worker:
    """Runs units.

    Args:
        start: a pickled `Start`. Nothing is unpickled before the worker's environment is as it should be, for
            that imports torch.
    """

    def __init__(self, start: bytes) -> None:
        import torch

        from vivace.eval.plugins import import_plugin

        found: Start = pickle.loads(start)
        if Path(found.folder).is_dir():
            os.chdir(found.folder)
        torch.set_num_threads(found.threads)
        for package in found.packages:
            import_plugin(package)
        self._loaded = found.load()
        self._jobs: dict[str, tuple[bytes, Job]] = {}
        self._worlds, self._made_by = Worlds(_nowhere), b""

    def run(self, unit: Unit, order: bytes, known: Collection[int]) -> Iterator[Result | Done]:
        """Run a unit; yields the results of episodes as they end, and at last the times.

        Args:
            unit: what to run.
            order: the pickled `Order` of its job; the policy is brought under its plan once.
            known: seeds whose results are there already.
        """
        watch = Stopwatch()
        job = self._job(unit.job, order)
        for result in job.run(unit, known, self._worlds_of(job), watch):
            yield Result(result)
        yield Done(watch)

    def _job(self, name: str, order: bytes) -> Job:
        if name not in self._jobs or self._jobs[name][0] != order:
            asked: Any = pickle.loads(order)
            self._jobs[name] = order, asked.job(self._loaded)
        return self._jobs[name][1]

    def _worlds_of(self, job: Job) -> Worlds:
        """Worlds of a job: those there are, if they are of the same kind; one kind at a time is kept."""
        maker = pickle.dumps(job.make_env)
        if maker != self._made_by:
            self._worlds.close()
            self._worlds, self._made_by = Worlds(job.make_env), maker
        return self._worlds


def _nowhere() -> Any:
    raise AssertionError("no job has said yet where it is run")
