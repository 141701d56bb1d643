"""The one control loop: scored in simulation, run on the robot.

A tick is  observe → accept → submit → accept → pop → guard → act,  once every control period.

    sync   n_action_steps of a chunk are executed from its first action on, whenever it arrives; then the loop
           asks for the next one, and the fallback acts while the policy thinks and the world moves
    async  the next chunk is asked for before the fresh actions are used up; action i of a chunk is executed
           at its own tick or dropped, and a newer chunk replaces the older one when it arrives
    rtc    as async, and the next chunk is made to continue the present one (real-time chunking)

Each tick says what it executed. The age of an action is the ticks since the observation it was computed from.

    chunk     an action younger than n_action_steps ticks, as in a world that waits
    stale     an action of age n_action_steps or more: no action is that old in a world that waits. In async
              mode an action of the previous chunk after the next one was due; in sync mode the last actions
              of a chunk that arrived late
    fallback  no action of a chunk: the queue was empty or the guard refused a non-finite action

A robot that stands (before the first chunk, in a hold, or because the queue ran dry) goes no part of a chunk:
what it stood through is left out of "its own tick", so that a chunk from a standstill begins with its first
action, whatever it took to compute. Where it is known what the robot holds (`posture`), the first
actions bring it from there by no more than the limits' step or the chunk's own (`ActionGuard.ramp`).

`LatencyBudget` says when a chunk is due and a deadline missed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vivace.deploy.loop.budget import LatencyBudget, Rung
from vivace.deploy.loop.chunk_queue import ChunkQueue, Queued
from vivace.deploy.loop.clock import Clock
from vivace.deploy.loop.guard import ActionGuard
from vivace.deploy.loop.pace import Beat, Pace
from vivace.deploy.loop.robot import Listens, Robot, able
from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.loop.standstill import fallback_action, is_standstill
from vivace.deploy.loop.watchdog import State, Watchdog
from vivace.deploy.workers.worker import Request, Worker
from vivace.policies.backports import StrEnum
from vivace.policies.errors import BadSetting, ObservationMismatch, VivaceError
from vivace.policies.spec import ActionKind, Observation, PolicySpec

_KEPT = 100
"""Errors that are remembered; all are counted."""


class Source(StrEnum):
    """What a tick executed."""

    CHUNK = "chunk"
    STALE = "stale"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class TickRecord:
    """What happened at one tick."""

    tick: int
    source: Source
    action: np.ndarray
    """Executed action (A,), after the guard."""
    chunk_id: int | None
    """Count of the chunk it came from, None for the fallback."""
    age_ticks: int | None
    """Ticks since the observation it was computed from, None for the fallback."""
    has_asked: bool
    """A chunk was asked for at this tick."""
    has_accepted: bool
    """A chunk was there for the first time at this tick."""
    is_guarded: bool
    """The guard refused or changed an action."""
    remaining: int
    """Actions left for later ticks."""
    beat: Beat = field(compare=False)
    """When the tick began, how late, and what was skipped before it."""
    ended_s: float = field(compare=False)
    """When the robot had been told what to do [s]."""
    latency_s: float | None
    """Of the chunk that was there for the first time [s]."""
    has_missed: bool
    """A deadline was missed at this tick."""
    state: State
    """What the watchdog decided; run if there is none."""


class ControlLoop:
    """Drives one robot with one policy for one episode; `build_loop` makes one.

    Args:
        queue: of the settings' mode.
        budget: control rate, deadlines and their misses.
        watchdog: may take the robot away from the policy; it also judges inferences that come to nothing, of
            which chunks of a wrong shape are raised where there is none.

    All else is as of `build_loop`.
    """

    def __init__(
        self,
        robot: Robot,
        worker: Worker,
        queue: ChunkQueue,
        guard: ActionGuard,
        budget: LatencyBudget,
        clock: Clock,
        settings: LoopSettings,
        *,
        spec: PolicySpec,
        posture: Sequence[float] | None = None,
        episode_seed: int = 0,
        watchdog: Watchdog | None = None,
    ) -> None:
        _check_sizes(settings, queue, guard, spec, posture)
        self._robot, self._worker, self._clock = robot, worker, clock
        self._listener = able(robot, Listens)
        self._settings, self._spec, self._seed = settings, spec, episode_seed
        self._n_fresh, self._lead = settings.fresh_actions(spec), settings.lead(spec)
        self._knows_posture = posture is not None
        self.queue, self.guard, self.budget = queue, guard, budget
        self.tick_count = 0
        """Number of the next tick: ticks that have acted, and deadlines that passed without one."""
        self.failures = 0
        """Inferences so far that gave no chunk."""
        self.errors: deque[str] = deque(maxlen=_KEPT)
        """What failed on the loop's side of them, newest last."""
        self.pace = Pace(clock, budget.period_s)
        self._watchdog = watchdog
        self._beat = Beat(0, clock.now(), 0.0, 0)
        self._asked_s = 0.0
        self._latency_s: float | None = None
        self._history: deque[Observation] = deque(maxlen=spec.n_obs_steps)
        start = np.zeros(spec.action_dim) if posture is None else posture
        self._last = self._told = np.array(start, dtype=np.float32)
        """What the policy did last, and what the robot was told last."""
        self._fallback_ticks = 0
        self._stands = True
        self._has_asked = self._has_accepted = self._waits = False

    def tick(self) -> TickRecord:
        """Run one control period."""
        self.begin()
        return self.end()

    def begin(self) -> None:
        """First half of a tick: wait for its time, observe, accept what is there, ask for more if due.

        Many loops in virtual time do this half together, so that their requests form one batch.
        """
        self._beat = self.pace.wait(self.tick_count)
        self.tick_count = self._beat.tick
        self._has_asked = self._has_accepted = False
        self._latency_s = None
        self._observe()
        self._accept()
        if not self._worker.is_busy and (self._watchdog is None or self._watchdog.is_trusted):
            fresh = self._fresh_left()
            if self._is_due(fresh):
                self._ask(fresh)

    def end(self) -> TickRecord:
        """Second half of a tick: accept what is there by now, then act."""
        self._accept()
        tick, misses, kinds = self.tick_count, self.budget.misses, self._spec.action_kinds
        if self._worker.is_busy:
            self.budget.wait(tick)
        interventions = self.guard.interventions
        state = self._judge()
        queued = self._pop() if state == State.RUN else None
        action = None if queued is None else self.guard.check(queued.action)
        if queued is None or action is None:
            self._fallback_ticks += 1
            source, chunk_id, age = Source.FALLBACK, None, None
            held = fallback_action(self._last, kinds, self._fallback_ticks, self._settings.ramp_ticks)
            action = self.guard.limit(held)
            self._stands = is_standstill(action, self._told, kinds)
            if queued is not None:
                self.queue.refuse()
            elif self._stands:
                self.queue.stand(tick)
        else:
            self._last, self._fallback_ticks, self._stands = action, 0, False
            chunk_id, age = queued.chunk_id, queued.age_ticks
            source = Source.CHUNK if age < self._n_fresh else Source.STALE
        self._told = action
        self._robot.act(action)
        ended_s = self._clock.now()
        if self._watchdog is not None:
            alive = (Source.CHUNK, Source.STALE) if self._settings.is_sync else (Source.CHUNK,)
            has_reached = self._listener is None or self._listener.has_reached
            # In sync mode late actions are usual.
            self._watchdog.acted(ended_s, is_fresh=source in alive, has_reached=has_reached)
        self.tick_count = tick + 1
        return TickRecord(
            tick,
            source,
            action,
            chunk_id,
            age,
            self._has_asked,
            self._has_accepted,
            self.guard.interventions > interventions,
            self.queue.remaining(tick + 1),
            self._beat,
            ended_s,
            self._latency_s,
            self.budget.misses > misses,
            state,
        )

    def _pop(self) -> Queued | None:
        """Take the action of this tick; a chunk that begins from a known posture is ramped to."""
        queued = self.queue.pop(self.tick_count)
        ahead = self.queue.ahead(self.tick_count)
        if queued is not None and ahead is not None and self._stands and self._knows_posture:
            self.guard.ramp(ahead)
        return queued

    def _judge(self) -> State:
        """Ask the watchdog who acts; what was observed while it did not trust its eyes is forgotten."""
        if self._watchdog is None:
            return State.RUN
        now, restarts = self._clock.now(), self._worker.restarts
        state = self._watchdog.judge(
            now,
            self.budget.misses,
            restarts,
            has_accepted=self._has_accepted,
            failures=self.failures,
            late_s=now - self._beat.due_s - self.budget.period_s,
        )
        if not self._watchdog.is_trusted:
            self.queue.clear(self.tick_count + 1)
        return state

    def _observe(self) -> None:
        observation = self._robot.observe()
        if self._watchdog is not None:
            self._watchdog.look(observation, self._clock.now())
        n = 1 if self._history else self._spec.n_obs_steps  # padded by repetition, as Diffusion Policy does
        self._history.extend([observation] * n)

    def _accept(self) -> None:
        chunk = self._worker.poll(self._clock.now())
        if chunk is None:
            if self._waits and not self._worker.is_busy:
                self._fail()
            return
        self._waits = False
        self._latency_s = max(0.0, chunk.ready_s - self._asked_s)  # a clock may have been set back
        self.budget.arrive(self._latency_s)
        shape = chunk.actions.shape
        if len(shape) != 2 or shape[1] != self._spec.action_dim:
            self._fail(BadSetting(f"a chunk has shape {shape}; (actions, {self._spec.action_dim}) is needed"))
            return
        self._has_accepted |= self.queue.push(chunk, self.tick_count, was_late=self.budget.was_late)

    def _fail(self, error: VivaceError | None = None) -> None:
        """Count an inference that gave no chunk; where nobody judges it, what we know of it is raised."""
        if error is not None:
            if self._watchdog is None:
                raise error
            self.errors.append(str(error))
        self.failures += 1
        self._waits = False

    def _fresh_left(self) -> int:
        """Actions in the queue that will still be fresh when their tick comes."""
        observed = self.queue.observed_tick
        if observed is None:
            return 0
        young = observed + self._n_fresh - self.tick_count
        return max(0, min(young, self.queue.remaining(self.tick_count)))

    def _is_due(self, fresh: int) -> bool:
        if self._settings.is_sync:
            return self.queue.remaining(self.tick_count) == 0
        return fresh <= (self.budget.lead_ticks if self._lead is None else self._lead)

    def _ask(self, fresh: int) -> None:
        self._asked_s = self._clock.now()
        try:
            self._worker.submit(self._request(fresh))
        except VivaceError as error:
            self._fail(error)
            return
        self._has_asked = self._waits = True
        if not self._settings.is_sync:  # there the robot waits for every chunk: no deadline
            self.budget.ask(self.tick_count + fresh)

    def _request(self, fresh: int) -> Request:
        """What the next inference starts from.

        Raises:
            ObservationMismatch: what was observed does not fit the policy.
        """
        try:
            keys = self._spec.observation_shapes
            observations = {key: np.stack([seen.values[key] for seen in self._history]) for key in keys}
        except KeyError as error:
            raise ObservationMismatch(
                f"observation has keys {sorted(self._history[-1].values)}, but the policy needs {error}; "
                "map your names onto lerobot's keys"
            ) from error
        except ValueError as error:
            raise ObservationMismatch(f"observations do not fit one another ({error})") from error
        left_s = fresh * self.budget.period_s
        return Request(
            observations,
            self.tick_count,
            self._asked_s,
            noise_key=(self._seed, self.tick_count),
            plan=self.budget.choose(left_s),
            previous=self.queue.ahead(self.tick_count),
            task=self._history[-1].task,
            delay_ticks=self.budget.expected_ticks,
            deadline_s=self._asked_s + left_s if self._settings.anytime and fresh else None,
            followed=self.queue.followed(self.tick_count),
        )


def build_loop(
    robot: Robot,
    worker: Worker,
    guard: ActionGuard,
    clock: Clock,
    settings: LoopSettings,
    spec: PolicySpec,
    *,
    control_hz: float,
    ladder: Sequence[Rung] = (),
    posture: Sequence[float] | None = None,
    episode_seed: int = 0,
    watchdog: Watchdog | None = None,
) -> ControlLoop:
    """Put a loop together, wherever it runs.

    Args:
        robot: observed and acted on once a tick.
        worker: computes chunks.
        guard: limits every action.
        clock: wall or virtual time; the episode begins now.
        settings: how chunks are executed; the queue is their mode's.
        spec: of the policy.
        control_hz: control rate [Hz].
        ladder: plans to choose among, best first; empty if there is but one.
        posture: what the robot holds before the first action (A,), if that is known.
        episode_seed: names this episode's noise, together with the tick.
        watchdog: may take the robot away from the policy.

    Raises:
        BadSetting: parts do not fit one another, or a chunk has fewer actions than are asked for.
    """
    settings = settings.settled(spec.mode)
    is_sync = settings.is_sync
    limit, blend = (settings.fresh_actions(spec), 0) if is_sync else (None, settings.blend_ticks)
    queue = ChunkQueue(drop_late=not is_sync, limit=limit, blend_ticks=blend, ensemble=spec.temporal_ensemble)
    return ControlLoop(
        robot,
        worker,
        queue,
        guard,
        LatencyBudget(control_hz, tuple(ladder)),
        clock,
        settings,
        spec=spec,
        posture=posture,
        episode_seed=episode_seed,
        watchdog=watchdog,
    )


def _check_sizes(
    settings: LoopSettings,
    queue: ChunkQueue,
    guard: ActionGuard,
    spec: PolicySpec,
    posture: Sequence[float] | None,
) -> None:
    if queue.drop_late == settings.is_sync:
        raise BadSetting(
            f"the queue has drop_late={queue.drop_late}, which mode {settings.mode} cannot use; "
            "let build_loop make it"
        )
    if ActionKind.UNKNOWN in spec.action_kinds:
        raise BadSetting(
            f"what the actions mean is not known of all dimensions: {', '.join(spec.action_kinds)}; say it "
            "by --env.action_kinds='[…]', or when loading the policy (action_kinds)"
        )
    if posture is not None and not np.isfinite(posture).all():
        raise BadSetting(f"posture={list(posture)} holds NaN or infinity")
    n_posture = None if posture is None else len(posture)
    sizes = {"action_kinds": len(spec.action_kinds), "limits": guard.limits.action_dim, "posture": n_posture}
    for name, size in sizes.items():
        if size not in (None, spec.action_dim):
            raise BadSetting(f"{name} has {size} dimensions, the policy's actions have {spec.action_dim}")
