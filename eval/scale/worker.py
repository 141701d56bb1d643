"""A worker: loads the policy once, and runs one unit after the other. The same in a process and on Ray."""

import os
import pickle
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vivace.eval.plugins import import_plugin
from vivace.eval.scale.job import Job, Stopwatch, Unit
from vivace.eval.scale.schedule import Done, Result
from vivace.eval.simulation.rollout import Worlds
from vivace.policies.load import LoadedPolicy


class Running(Protocol):
    """What runs units in a worker."""

    def run(self, *arguments: Any) -> Iterator[Result | Done]:
        """Run a unit; yields `Result`s and at last a `Done`."""


class Start(Protocol):
    """What a worker begins with; it is pickled."""

    def begin(self) -> Running:
        """Make ready what runs units."""


class Worker:
    """Runs units in a process of its own.

    Args:
        start: a pickled `Start`: nothing is imported for it before the process's environment is set.
    """

    def __init__(self, start: bytes) -> None:
        self._running: Running = pickle.loads(start).begin()

    def run(self, *arguments: Any) -> Iterator[Result | Done]:
        """Run a unit."""
        yield from self._running.run(*arguments)


@dataclass(frozen=True)
class Acting:
    """Begins with a policy."""

    load: Callable[[], LoadedPolicy]
    """Loads it; a partial of a function of a module, so that it travels."""
    folder: str
    """Working folder of the command, which names may be relative to."""
    packages: tuple[str, ...]
    """Imported before, for what they register: policies, steps of processors, worlds."""
    threads: int
    """torch's."""

    def begin(self) -> "ActingWorker":
        """Load the policy."""
        import torch

        torch.set_num_threads(self.threads)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        for package in self.packages:
            import_plugin(package)
        return ActingWorker(self.load())


class ActingWorker:
    """Runs the episodes of jobs.

    Args:
        loaded: the policy.
    """

    def __init__(self, loaded: LoadedPolicy) -> None:
        self._loaded = loaded
        self._jobs: dict[str, tuple[bytes, Job]] = {}
        self._worlds: tuple[bytes, Worlds] | None = None

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
            self._jobs[name] = order, pickle.loads(order).job(self._loaded)
        return self._jobs[name][1]

    def _worlds_of(self, job: Job) -> Worlds:
        """Worlds of a job: those there are, if they are of the same kind; one kind at a time is kept."""
        maker = pickle.dumps(job.make_env)
        if self._worlds is None or self._worlds[0] != maker:
            if self._worlds is not None:
                self._worlds[1].close()
            self._worlds = maker, Worlds(job.make_env)
        return self._worlds[1]


@dataclass(frozen=True)
class Calling:
    """Begins with a function, of which every unit is an argument."""

    function: Callable[[Any], Any]

    def begin(self) -> "Calling":
        """Return itself."""
        return self

    def run(self, argument: Any) -> Iterator[Result | Done]:
        """Call it."""
        yield Result(self.function(argument))
        yield Done()
