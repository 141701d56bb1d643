"""Runs the episodes of jobs, wherever `ScaleOptions` say, and stores each as it ends."""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID
from scipy.stats import binomtest

from vivace.eval.plugins import plugins
from vivace.eval.scale.hire import hire, warn
from vivace.eval.scale.job import Job, Stopwatch, Unit
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.scale.schedule import Crew, Schedule
from vivace.eval.scale.worker import Acting
from vivace.eval.simulation.episode import EpisodeResult, append_result, load_results
from vivace.eval.simulation.rollout import Worlds
from vivace.eval.terminal import progress
from vivace.policies.backports import Self
from vivace.policies.errors import WorkerLost
from vivace.policies.load import LoadedPolicy

_REFRESH_S = 0.1


class Workforce:
    """Runs jobs; its workers stay from one call to the next, so that a search can ask again and again.

    Args:
        scale: where episodes are run: here when it names neither workers nor a cluster.
        load: loads the policy in a worker; a partial of a function of a module (`subject.loading`).
    """

    def __init__(self, scale: ScaleOptions, load: Callable[[], LoadedPolicy]) -> None:
        self._scale, self._load = scale, load
        self._crew: Crew | None = None
        self._schedule: Schedule | None = None
        self._worlds: Worlds | None = None
        self._orders: dict[str, bytes] = {}
        self._stores: dict[str, _Store] = {}
        self.stopwatch = Stopwatch()
        """Times of all episodes that were run, of workers side by side added up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and worlds; the next call begins others."""
        self._close_worlds()
        crew, self._crew, self._schedule = self._crew, None, None
        if crew is not None:
            crew.close()

    def run(self, jobs: Sequence[Job], folder: Path) -> dict[str, list[EpisodeResult]]:
        """Run the episodes of jobs that are not stored yet; of a share, those of its units alone.

        Args:
            jobs: what to run, each under a name of its own.
            folder: holds a file `<name>.jsonl` of every job's episodes.

        Returns:
            Name of a job -> results in the order of their seeds.

        Raises:
            WorkerLost: a unit killed two workers, or none is left; all other episodes are stored.
        """
        folder.mkdir(parents=True, exist_ok=True)
        units = [unit for job in jobs for unit in job.units()]
        if share := self._scale.share:
            units = units[share.number - 1 :: share.of] if share.number else []
        self._orders.clear()
        with progress() as bars:
            self._stores = {job.name: _Store(job, folder, units, bars) for job in jobs}
            missing = [unit for unit in units if not self._stores[unit.job].has(unit)]
            try:
                given_up = self._run(missing, {job.name: job for job in jobs})
            except BaseException:
                self.close()  # what its workers are at belongs to nobody any more
                raise
        for store in self._stores.values():
            store.tell_failures()
        if given_up:
            raise WorkerLost(_told(given_up, folder))
        return {name: store.results() for name, store in self._stores.items()}

    def _run(self, units: Sequence[Unit], jobs: dict[str, Job]) -> dict[Unit, str]:
        """Run units; returns those that were given up, and what of."""
        if self._scale.is_here:
            for unit, what in self._run_here(units, jobs):
                self._take(unit, what)
            return {}
        if not units:
            return {}
        for name in {unit.job for unit in units}:
            self._orders[name] = pickle.dumps(jobs[name].order())
        return self._hired().run(units, self._take)

    def _run_here(self, units: Sequence[Unit], jobs: dict[str, Job]) -> Iterator[tuple[Unit, Any]]:
        """Run units in this process."""
        for unit in units:
            job, watch = jobs[unit.job], Stopwatch()
            for result in job.run(unit, self._stores[unit.job].known, self._worlds_of(job), watch):
                yield unit, result
            yield unit, watch

    def _worlds_of(self, job: Job) -> Worlds:
        """Worlds of a job in this process: those there are, if the same function makes them."""
        if self._worlds is None or not self._worlds.are_made_by(job.make_env):
            self._close_worlds()
            self._worlds = Worlds(job.make_env)
        return self._worlds

    def _close_worlds(self) -> None:
        worlds, self._worlds = self._worlds, None
        if worlds is not None:
            worlds.close()

    def _take(self, unit: Unit, what: EpisodeResult | Stopwatch) -> None:
        """Take a result, or at the end of a unit its times."""
        if isinstance(what, Stopwatch):
            self.stopwatch.add(what)
        else:
            self._stores[unit.job].add(what)

    def _arguments(self, unit: Unit) -> tuple[Unit, bytes, frozenset[int]]:
        """Of `ActingWorker.run`."""
        return unit, self._orders[unit.job], self._stores[unit.job].known

    def _hired(self) -> Schedule:
        """Return workers, begun if there are none."""
        if self._schedule is not None:
            return self._schedule
        scale = self._scale
        start = Acting(self._load, os.getcwd(), plugins(), scale.threads)
        self._crew, self._schedule, _ = hire(scale, start, self._arguments)
        return self._schedule


class _Store:
    """The file of a job's episodes, and its bar."""

    def __init__(self, job: Job, folder: Path, units: Sequence[Unit], bars: Progress) -> None:
        self._job, self._bars = job, bars
        self._path = folder / f"{job.name}.jsonl"
        self._seeds = [seed for unit in units if unit.job == job.name for seed in unit.seeds]
        self._results = {result.seed: result for result in load_results(self._path)}
        self._bar: TaskID | None = None
        self._shown_s = 0.0

    @property
    def known(self) -> frozenset[int]:
        """Seeds of the episodes that are stored."""
        return frozenset(self._results)

    def has(self, unit: Unit) -> bool:
        """Whether all episodes of a unit are stored."""
        return self._results.keys() >= set(unit.seeds)

    def results(self) -> list[EpisodeResult]:
        """Return those that were asked for, as far as they are there."""
        return [self._results[seed] for seed in self._seeds if seed in self._results]

    def add(self, result: EpisodeResult) -> None:
        """Store a result, unless one of its seed is there: a unit that was interrupted runs again whole."""
        if result.seed in self._results:
            return
        append_result(self._path, result)
        self._results[result.seed] = result
        self._show()

    def _show(self) -> None:
        """Show how many episodes there are, and what they say so far; ten times a second is enough."""
        now = time.monotonic()
        if self._bar is None:
            self._bar = self._bars.add_task(self._job.label, total=len(self._seeds))
        elif now - self._shown_s < _REFRESH_S and len(self._results) < len(self._seeds):
            return
        self._shown_s = now
        found = [result.success for result in self.results()]
        so_far = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
        told = f"{self._job.label}: {sum(found)} of {len(found)} ({so_far.low:.0%} … {so_far.high:.0%})"
        self._bars.update(self._bar, description=told, completed=len(found))

    def tell_failures(self) -> None:
        """Say how many chunks a policy failed to give, and what of."""
        results = self.results()
        failed = [error for result in results for error in result.errors]
        if failed:
            asked = sum(len(result.latencies_s) for result in results)
            warn(
                f"{self._job.label}: {len(failed)} of {asked} chunks failed, the fallback acted; the first: "
                f"{failed[0]}"
            )


def _told(given_up: dict[Unit, str], folder: Path) -> str:
    (first, how), *others = given_up.items()
    more = f" and {len(others)} more units" if others else ""
    return (
        f"{first}{more} killed two workers each ({how}); all other episodes are kept in {folder}. Run the "
        "same command again with fewer --scale.workers, or with a smaller batch"
    )
