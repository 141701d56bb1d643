"""Run episodes in virtual time: the world moves while the policy thinks, and nobody sleeps.

The episodes of a batch advance tick by tick together, and the inferences in flight are computed in one batch
when the first of them is needed. An episode is a function of its seed, the plan and the latency model: its
noise is keyed by (episode seed, tick of the observation). What is left are the last bits of floating point,
which depend on how many rows are computed at once, so a batch is always the same seeds, and one that was
interrupted runs again whole.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.clock import Clock, VirtualClock
from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.loop import Source, TickRecord, build_loop
from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.workers.worker import BatchedInference, Predict, Request, SimulatedWorker
from vivace.eval.simulation.env_robot import EnvRobot, check_ends, control_rate
from vivace.eval.simulation.episode import EpisodeResult, jumps
from vivace.eval.simulation.latency_model import LatencyModel, NoLatency
from vivace.policies.errors import BadSetting
from vivace.policies.spec import PolicySpec


@dataclass(frozen=True)
class RungRun:
    """One plan of a ladder in virtual time."""

    rung: Rung
    predict: Predict
    latency: LatencyModel


OnTick = Callable[[int, Any, TickRecord], None]
"""Called with (episode seed, environment, record) after every tick."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Which episodes, and at what pace."""

    n_episodes: int = 20
    seed: int = 100_000
    """Episode i is reset with seed + i."""
    batch_size: int = 20
    """Episodes stepped together."""
    control_hz: float | None = None
    """Control rate [Hz]: the world moves on by one period a tick, always. The environment's own when None."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """How chunks are executed."""
    latency: LatencyModel = field(default_factory=NoLatency)
    max_steps: int | None = None
    """Longest episode; the environment's own when None."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Counts and rates must be positive."""
        for name in ("n_episodes", "batch_size", "control_hz", "max_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadSetting(f"{name}={value}; a number above 0 is needed")
        if self.seed < 0:
            raise BadSetting(f"seed={self.seed}; 0 or more is needed")

    @property
    def seeds(self) -> range:
        """Of the episodes."""
        return range(self.seed, self.seed + self.n_episodes)

    def batches(self) -> list[range]:
        """Seeds of the episodes that are stepped together."""
        starts = range(0, self.n_episodes, self.batch_size)
        return [self.seeds[first : first + self.batch_size] for first in starts]


def rollout(
    make_env: Callable[[], Any],
    predict: Predict,
    spec: PolicySpec,
    settings: RolloutSettings,
    on_episode: Callable[[EpisodeResult], None] = lambda result: None,
    done: Sequence[EpisodeResult] = (),
    on_tick: OnTick | None = None,
    ladder: Sequence[RungRun] = (),
) -> list[EpisodeResult]:
    """Run episodes in virtual time; each ends at its first success, when its world ends, or at `max_steps`.

    Args:
        make_env: makes one world, a gymnasium environment with lerobot observation keys.
        predict: (observations {key: (B, To, ...)}, noise keys (B)) -> actions (B, H - first_action, A) in the
            robot's units.
        spec: of the policy.
        settings: which episodes, and at what pace.
        on_episode: called with every new result as soon as its episode ends, e.g. to store it.
        done: results of an interrupted run; they stand, and batches of which all are known are not run.
        on_tick: called with (seed, environment, record) after every tick, e.g. to film.
        ladder: plans to choose from before every chunk, best first; `predict` alone when empty.

    Returns:
        Results in the order of their seeds.
    """
    results = {result.seed: result for result in done}
    with closing(Worlds(make_env)) as worlds:
        for result in rolling(worlds, predict, spec, settings, tuple(results), on_tick, ladder):
            results[result.seed] = result
            on_episode(result)
    return [results[seed] for seed in settings.seeds]


class Worlds:
    """Worlds of one kind, kept from batch to batch: to make one may take longer than an episode in it.

    Args:
        make_env: makes one.
    """

    def __init__(self, make_env: Callable[[], Any]) -> None:
        self._make_env = make_env
        self._made: list[Any] = []

    def are_made_by(self, make_env: Callable[[], Any]) -> bool:
        """Whether this function makes them."""
        return self._make_env is make_env

    def take(self, n: int) -> list[Any]:
        """Return so many of them, made as far as need be; an episode resets its world first."""
        while len(self._made) < n:
            self._made.append(self._make_env())  # one by one: those made are closed if the next fails
        return self._made[:n]

    def close(self) -> None:
        """Close all of them."""
        while self._made:
            self._made.pop().close()


def rolling(
    worlds: Worlds,
    predict: Predict,
    spec: PolicySpec,
    settings: RolloutSettings,
    known: Collection[int] = (),
    on_tick: OnTick | None = None,
    ladder: Sequence[RungRun] = (),
) -> Iterator[EpisodeResult]:
    """Yield the result of every episode as it ends.

    Args:
        worlds: where they are run.
        predict: as of `rollout`.
        spec: of the policy.
        settings: as of `rollout`.
        known: seeds whose results nobody needs. Their episodes run along where others of their batch are
            needed, for how many rows are computed at once decides the last bits.
        on_tick: as of `rollout`.
        ladder: as of `rollout`.
    """
    settings.loop.fresh_actions(spec)  # refuses what does not fit before a world is made
    batches = [batch for batch in settings.batches() if not set(batch) <= set(known)]
    envs = worlds.take(max(map(len, batches), default=0))
    control_hz = control_rate(envs[0], settings.control_hz) if envs else 0.0
    if envs:
        check_ends(envs[0], settings.max_steps)
    for seeds in batches:
        plans = {run.rung.name: run.predict for run in ladder}
        inference, clock = BatchedInference(predict, plans), VirtualClock()
        batch = [
            _Episode(env, seed, inference, clock, spec, settings, control_hz, ladder)
            for env, seed in zip(envs, seeds, strict=False)
        ]
        yield from _run(batch, known, on_tick)


class _Episode:
    """One running episode: a robot, its worker and its loop."""

    def __init__(
        self,
        env: Any,
        seed: int,
        inference: BatchedInference,
        clock: Clock,
        spec: PolicySpec,
        settings: RolloutSettings,
        control_hz: float,
        ladder: Sequence[RungRun],
    ) -> None:
        self.seed, self._settings, self._control_hz = seed, settings, control_hz
        self.robot = EnvRobot(env, control_hz)
        self.robot.reset(seed)
        models = {None: settings.latency} | {run.rung.name: run.latency for run in ladder}

        def latency_s(n: int, request: Request) -> float:
            model = models[request.plan]
            return (model if request.followed else model.first).latency_s(seed, n, request.time_s)

        self.worker = SimulatedWorker(inference, latency_s)
        self.loop = build_loop(
            self.robot,
            self.worker,
            ActionGuard(settings.limits, spec.action_kinds, 1 / control_hz),
            clock,
            settings.loop,
            spec,
            control_hz=control_hz,
            ladder=[run.rung for run in ladder],
            posture=self.robot.initial_action,
            episode_seed=seed,
        )
        self.records: list[TickRecord] = []

    @property
    def is_over(self) -> bool:
        """Whether the world has ended or time is up."""
        limit = self._settings.max_steps
        return self.robot.is_over or (limit is not None and self.loop.tick_count >= limit)

    def result(self) -> EpisodeResult:
        """Sum the episode up; raises `UnknownEnvironment` if nobody knows how it went."""
        self.robot.check_judged()
        steps, success = self.loop.tick_count, self.robot.is_success
        seam_jumps, inner_jumps = jumps(self.records)
        counts = Counter(record.source for record in self.records)
        return EpisodeResult(
            seed=self.seed,
            success=success,
            score=self.robot.score,
            steps=steps,
            time_to_success_s=steps / self._control_hz if success else None,
            ticks={source.value: counts[source] for source in Source},
            deadline_misses=self.loop.budget.misses,
            interventions=self.loop.guard.interventions,
            latencies_s=tuple(latency_s for _, latency_s in self.worker.asked),
            request_ticks=tuple(tick for tick, _ in self.worker.asked),
            seam_jumps=seam_jumps,
            inner_jumps=inner_jumps,
            choices=dict(self.loop.budget.choices),
            timeline="".join(record.source.value[0] for record in self.records),
            errors=tuple(self.worker.errors),
            records=tuple(self.records),
        )


def _run(running: list[_Episode], known: Collection[int], on_tick: OnTick | None) -> Iterator[EpisodeResult]:
    """Run episodes tick by tick together until all are over that are not known; yields those."""
    while any(episode.seed not in known for episode in running):
        for episode in running:
            episode.loop.begin()
        for episode in running:
            record = episode.loop.end()
            episode.records.append(record)
            if on_tick is not None:
                on_tick(episode.seed, episode.robot.env, record)
            if episode.is_over:
                episode.worker.cancel()
                if episode.seed not in known:
                    yield episode.result()
        running = [episode for episode in running if not episode.is_over]
