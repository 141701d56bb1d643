"""Plays candidates in closed loop, each under its own latency: what a race and a confirmation ask for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.options import CommonOptions
from vivace.eval.scale.job import Job
from vivace.eval.scale.workforce import Workforce
from vivace.eval.simulation.latency_model import LatencyModel
from vivace.eval.simulation.rollout import RolloutSettings
from vivace.eval.subject import session
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy


class ClosedLoop:
    """A `race.Play` of jobs; episodes are stored as they end, and those stored are not run again.

    Args:
        jobs: key of a candidate -> all the episodes it may be asked to run. It runs those batches of them
            that hold the seeds asked for, whole, for how many are computed together decides the last bits.
        workforce: runs them.
        folder: holds a file of every job's episodes.
    """

    def __init__(self, jobs: Mapping[str, Job], workforce: Workforce, folder: Path) -> None:
        self._jobs, self._workforce, self._folder = jobs, workforce, folder

    def __call__(self, keys: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, int], bool]:
        """Run episodes; (key, seed) -> success, at least of those asked for."""
        found: dict[tuple[str, int], bool] = {}
        stretches = {key: list(_stretches(self._jobs[key], seeds)) for key in keys}
        for turn in range(max(map(len, stretches.values()))):  # one, unless seeds lie apart
            jobs = {key: some[turn] for key, some in stretches.items() if turn < len(some)}
            results = self._workforce.run(list(jobs.values()), self._folder)
            for key, job in jobs.items():
                found |= {(key, result.seed): result.success for result in results[job.name]}
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
    return Job(f"{key}.from_{seeds[0]}", label, runner, make_env, settings)
