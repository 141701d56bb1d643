"""Plays candidates in closed loop, each under its own latency: what a race and a confirmation ask for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.telemetry.histogram import percentile
from vivace.eval.identity import digest
from vivace.eval.options import CommonOptions
from vivace.eval.race.ladder import Step
from vivace.eval.race.race import Played, nobodys_fault
from vivace.eval.scale.hire import warn
from vivace.eval.scale.job import Choice, Job
from vivace.eval.scale.workforce import Workforce
from vivace.eval.simulation.episode import EpisodeResult
from vivace.eval.simulation.latency_model import BurstyLatency, LatencyModel, MeasuredLatency
from vivace.eval.simulation.rollout import RolloutSettings
from vivace.eval.subject import session
from vivace.policies.errors import BadSetting, NoRoom, named
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy
from vivace.policies.plain_data import plain

_WITNESSES = 3
"""So many others are asked where nobody could run an episode."""


class ClosedLoop:
    """A `race.Play` of jobs; episodes are stored as they end, and those stored are not run again.

    One that raises, in a worker or here, while it is made or acts, is left out, and the others go on. What
    they have run by then is stored, so that to find out which one it is nothing is run again. Where nobody
    else ran, another one is asked as a witness: if it cannot run either, or there is none of several, it is
    the world, or the machine, that fails, and not them.

    Args:
        jobs: key of a candidate -> all the episodes it may be asked to run. It runs those batches of them
            that hold the seeds asked for, whole, for how many are computed together decides the last bits.
        workforce: runs them.
        folder: holds a file of every job's episodes.
        raised: key of a candidate that has no job -> what was raised while one was made.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        workforce: Workforce,
        folder: Path,
        raised: Mapping[str, str] | None = None,
    ) -> None:
        self._jobs, self._workforce, self._folder, self._raised = jobs, workforce, folder, raised or {}

    def __call__(self, keys: Sequence[str], seeds: Sequence[int]) -> Played:
        """Run episodes; success at least of those asked for, or what was raised of whom.

        Raises:
            NothingRuns: it is not theirs that they raised something.
        """
        found: dict[tuple[str, int], bool] = {}
        ran_s = self._workforce.stopwatch.total_s
        raised = {key: self._raised[key] for key in keys if key in self._raised}
        stretches = {key: list(_stretches(self._jobs[key], seeds)) for key in keys if key in self._jobs}
        for turn in range(max(map(len, stretches.values()), default=0)):  # one, unless seeds lie apart
            jobs = {key: some[turn] for key, some in stretches.items() if turn < len(some)}
            able = {key: job for key, job in jobs.items() if key not in raised}
            results = self._run(able, raised, self._folder)
            for key, some in results.items():
                found |= {(key, result.seed): result.success for result in some}
        if raised and self._workforce.stopwatch.total_s == ran_s:
            self._ask_a_witness(raised)
        return Played(found, raised)

    def _ask_a_witness(self, raised: Mapping[str, str]) -> None:
        """See whether anybody can run an episode; raises `NothingRuns` if nobody can.

        The last ones are asked first: jobs come the faster first, and the slow are more as trained.
        """
        others = [key for key in reversed([*self._jobs]) if key not in raised]
        if not others and len(raised) == 1:  # nobody knows
            return
        told = dict(raised)
        for key in others[:_WITNESSES]:
            job = self._jobs[key]
            with TemporaryDirectory() as folder:
                one = replace(job, settings=replace(job.settings, n_episodes=1))
                if self._run({key: one}, told, Path(folder)):
                    return
        check = "vivace eval with the same --policy, --env and --loop"
        raise nobodys_fault("episodes can be run", told, check)

    def _run(
        self, jobs: Mapping[str, Job], raised: dict[str, str], folder: Path
    ) -> dict[str, list[EpisodeResult]]:
        """Run jobs together; where one of them raises, one by one. Returns the results of the others."""
        if not jobs:
            return {}
        try:
            results = self._workforce.run(list(jobs.values()), folder)
        except NoRoom:
            raise
        except Exception as error:
            if len(jobs) == 1:
                raised |= dict.fromkeys(jobs, named(error))
                return {}
        else:
            return {key: results[job.name] for key, job in jobs.items()}
        found: dict[str, list[EpisodeResult]] = {}
        for key, job in jobs.items():
            found |= self._run({key: job}, raised, folder)
        return found


def _stretches(job: Job, seeds: Sequence[int]) -> Iterator[Job]:
    """Parts of a job: the batches that hold some of the seeds, those that follow each other as one."""
    wanted = set(seeds)
    batches = job.settings.batches()
    for is_asked, some in groupby(batches, key=lambda batch: not wanted.isdisjoint(batch)):
        if is_asked:
            first, *more = some
            n = len(first) + sum(map(len, more))
            yield replace(job, settings=replace(job.settings, seed=first[0], n_episodes=n))


def closed_loop_job(
    command: CommonOptions,
    loaded: LoadedPolicy,
    key: str,
    label: str,
    execution: Execution,
    loop: LoopSettings,
    latency: LatencyModel,
    make_env: Callable[[], Any],
    seeds: range,
    seeds_at_once: int,
) -> Job:
    """Return the episodes that a candidate may be asked to run.

    Args:
        command: names the world, its rate and its longest episode.
        loaded: the policy.
        key: of the candidate.
        label: what a person reads.
        execution: the policy under the candidate's plan.
        loop: how the candidate executes chunks.
        latency: of its chunks.
        make_env: makes a world (`subject.env_maker`); give all candidates the same, and they share worlds.
        seeds: of the episodes, one after the other.
        seeds_at_once: so many are stepped together.
    """
    runner = session(replace(command, loop=loop), loaded, execution)
    settings = RolloutSettings(
        n_episodes=len(seeds),
        seed=seeds[0],
        batch_size=seeds_at_once,
        control_hz=command.env.rate_hz,
        loop=loop,
        latency=latency,
        max_steps=command.env.max_steps,
    )
    name = (
        f"{key}.{digest(plain(latency))[:8]}.from_{seeds[0]}"  # under other latencies it is another episode
    )
    return Job(name, label, runner, make_env, settings)


class BurstyLoop:
    """A `ladder.Bursts` of jobs: the same episodes on a computer that is busy now and then.

    A plan of which something is raised is told, and left out.

    Args:
        jobs: key of a plan -> its episodes under measured latencies.
        workforce: runs them.
        folder: holds a file of every job's episodes.
        bursts: how often, how long and how busy; its samples are each plan's own.
    """

    def __init__(
        self, jobs: Mapping[str, Job], workforce: Workforce, folder: Path, bursts: BurstyLatency
    ) -> None:
        self._jobs, self._workforce, self._folder, self._bursts = jobs, workforce, folder, bursts

    def at_load(self, keys: Sequence[str], seeds: Sequence[int], load: float) -> dict[str, dict[int, bool]]:
        """Each plan alone, every chunk taking `load` times as long as measured."""
        scaled = {key: replace(self._latency(key), scale=load) for key in keys}
        return self._run({key: self._job(key, f"load_{load:g}", scaled[key]) for key in keys}, seeds)

    def bursting(self, keys: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[int, bool]]:
        """Each plan alone, in bursts of load."""
        return self._run({key: self._job(key, "bursts", self._bursty(key)) for key in keys}, seeds)

    def climbing(self, steps: Sequence[Step], seeds: Sequence[int]) -> dict[int, bool]:
        """The loop choosing among the plans of a ladder, in bursts of load."""
        choices = tuple(
            Choice(
                Rung(one.key, known_p99(self._latency(one.key).samples_s), one.from_load),
                self._jobs[one.key].session,
                self._bursty(one.key),
            )
            for one in steps
        )
        first = self._job(steps[0].key, "bursts", self._bursty(steps[0].key))
        name = "_".join(["ladder", *(one.key for one in steps)])
        found = self._run({name: replace(first, name=name, label="ladder", ladder=choices)}, seeds)
        return found.get(name, {})

    def _run(self, jobs: Mapping[str, Job], seeds: Sequence[int]) -> dict[str, dict[int, bool]]:
        played = ClosedLoop(jobs, self._workforce, self._folder)([*jobs], seeds)
        found: dict[str, dict[int, bool]] = {key: {} for key in jobs if key not in played.raised}
        for (key, seed), success in played.outcomes.items():
            if key in found and seed in seeds:
                found[key][seed] = success
        for key, reason in played.raised.items():
            warn(f"left out of the ladder: {jobs[key].label}: {reason}")
        return found

    def _job(self, key: str, suffix: str, latency: LatencyModel) -> Job:
        job = self._jobs[key]
        return replace(job, name=f"{job.name}.{suffix}", settings=replace(job.settings, latency=latency))

    def _latency(self, key: str) -> MeasuredLatency:
        """What was measured of a plan."""
        found = self._jobs[key].settings.latency.measured
        if found is None:
            raise BadSetting(
                f"a ladder is made of measured latencies, and plan {key} has none; time it first"
            )
        return found

    def _bursty(self, key: str) -> BurstyLatency:
        return replace(self._bursts, samples_s=self._latency(key).samples_s)


def known_p99(samples_s: Sequence[float]) -> float:
    """p99 [s] of measurements, the longest of fewer than a p99 takes: what a load is counted from."""
    return percentile(samples_s, 99) or max(samples_s)
