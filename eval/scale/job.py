"""A job: all episodes of one row of a table; its units of work, and how it travels to another process."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vivace.accel.apply import accelerate
from vivace.accel.plan import AccelerationPlan
from vivace.deploy.loop.budget import Rung
from vivace.eval.identity import describe_run, digest
from vivace.eval.simulation.episode import EpisodeResult
from vivace.eval.simulation.latency_model import LatencyModel
from vivace.eval.simulation.rollout import RolloutSettings, RungRun, Worlds, rolling
from vivace.policies.execution import as_trained, executing
from vivace.policies.load import LoadedPolicy
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session


@dataclass(frozen=True)
class Unit:
    """What a worker takes: one batch of episodes, always the same ones, whole.

    How many observations are computed at once decides the last bits of actions. So a batch is never parted,
    and never joined with another, whoever runs it.
    """

    job: str
    first: int
    """Seed of the first episode."""
    n: int

    @property
    def seeds(self) -> range:
        """Of its episodes."""
        return range(self.first, self.first + self.n)

    def __str__(self) -> str:
        """As a person reads it."""
        return f"episodes {self.first} to {self.seeds[-1]} of {self.job}"


class Stopwatch:
    """Tells the time the policy took from the time the world took."""

    def __init__(self) -> None:
        self.inference_s = self.total_s = self.simulated_s = 0.0

    def timed(self, predict: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """Wrap `Session.predict`."""

        def run(*args: Any) -> np.ndarray:
            began = time.perf_counter()
            actions = predict(*args)
            self.inference_s += time.perf_counter() - began
            return actions

        return run

    def add(self, other: "Stopwatch") -> None:
        """Count another's times too; those of workers that ran side by side add up."""
        for name, time_s in vars(other).items():
            setattr(self, name, getattr(self, name) + time_s)

    def summary(self) -> dict[str, float]:
        """Wall times [s], simulated time [s] and how much faster than real time the world ran."""
        world_s = self.total_s - self.inference_s
        return {
            "inference_s": round(self.inference_s, 2),
            "world_s": round(world_s, 2),
            "simulated_s": round(self.simulated_s, 2),
            "faster_than_real_time": round(self.simulated_s / world_s, 1) if world_s > 0 else 0.0,
        }


@dataclass(frozen=True)
class Choice:
    """A plan of a ladder."""

    rung: Rung
    session: Session
    latency: LatencyModel


@dataclass(frozen=True)
class Job:
    """All episodes of one row of a table."""

    name: str
    """Of its file of episodes, and of its results."""
    label: str
    """What a person reads."""
    session: Session
    """Who acts."""
    make_env: Callable[[], Any]
    """Makes one world; a partial of a function of a module, so that it travels."""
    settings: RolloutSettings
    """Which episodes, at what pace, under which latency."""
    ladder: tuple[Choice, ...] = ()
    """Plans to choose from before every chunk, best first; the session's alone when empty."""

    def units(self) -> list[Unit]:
        """Its batches, in the order of their seeds."""
        return [Unit(self.name, batch[0], len(batch)) for batch in self.settings.batches()]

    def run(
        self, unit: Unit, known: Collection[int], worlds: Worlds, watch: Stopwatch
    ) -> Iterator[EpisodeResult]:
        """Run a unit; under the latency of its settings, so that how chunks are launched does not matter.

        Args:
            unit: one of `units`.
            known: seeds whose results are there already.
            worlds: where; made by `make_env`.
            watch: takes the times.

        Yields:
            Results as their episodes end, without the records of their ticks.
        """
        settings = replace(self.settings, n_episodes=unit.n, seed=unit.first, batch_size=unit.n)
        rungs = [
            RungRun(one.rung, watch.timed(one.session.eagerly().predict), one.latency) for one in self.ladder
        ]
        predict, spec = watch.timed(self.session.eagerly().predict), self.session.spec
        began = time.perf_counter()
        for result in rolling(worlds, predict, spec, settings, known, ladder=rungs):
            watch.simulated_s += result.steps / (settings.control_hz or math.inf)
            yield replace(result, records=())
        watch.total_s += time.perf_counter() - began

    def order(self) -> "Order":
        """Return the job as it travels."""
        ladder = tuple((one.rung, Actor.of(one.session), one.latency) for one in self.ladder)
        return Order(self.name, self.label, Actor.of(self.session), self.make_env, self.settings, ladder)

    def described(self) -> str:
        """Hash of everything that its results depend on, apart from machine and versions."""
        sessions = [self.session, *(one.session for one in self.ladder)]
        latencies = [(f"{one.rung}", f"{one.latency}") for one in self.ladder]
        runs = [describe_run(session) for session in sessions]
        return digest({"runs": runs, "ladder": latencies, "settings": f"{self.settings}"})


@dataclass(frozen=True)
class Actor:
    """How a policy acts, without its weights."""

    plan: AccelerationPlan | None
    n_action_steps: int
    control_hz: float | None
    task: str
    chunking: RealTimeChunking | None

    @classmethod
    def of(cls, session: Session) -> "Actor":
        """Return how a session acts."""
        spec = session.execution.policy.spec
        plan = session.execution.plan
        return cls(plan, spec.n_action_steps, spec.control_hz, session.task, session.chunking)

    def session(self, loaded: LoadedPolicy) -> Session:
        """Return that session over a policy that was loaded anew."""
        policy = executing(loaded.staged, self.n_action_steps, self.control_hz)
        execution = as_trained(policy) if self.plan is None else accelerate(policy, self.plan)
        return Session(loaded, execution, self.task, self.chunking)


@dataclass(frozen=True)
class Order:
    """A job as it travels to another process, which has loaded the policy itself."""

    name: str
    label: str
    actor: Actor
    make_env: Callable[[], Any]
    settings: RolloutSettings
    ladder: tuple[tuple[Rung, Actor, LatencyModel], ...]

    def job(self, loaded: LoadedPolicy) -> Job:
        """Return the job over a policy that was loaded anew."""
        choices = (Choice(rung, actor.session(loaded), latency) for rung, actor, latency in self.ladder)
        session = self.actor.session(loaded)
        return Job(self.name, self.label, session, self.make_env, self.settings, tuple(choices))
