"""Who computes chunks, and when they are there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from vivace.policies.carry import FOLLOWED, SLOTS, Slot
from vivace.policies.errors import BadSetting, NonFiniteActions
from vivace.policies.spec import DELAY, PREVIOUS, Chunk

_SLACK_S = 1e-9
"""Rounding of tick times is not lateness."""


@dataclass(frozen=True)
class Request:
    """What an inference starts from."""

    observations: Mapping[str, np.ndarray]
    """Key -> (To, ...), newest last."""
    tick: int
    """Tick of the newest observation."""
    time_s: float
    """When it was asked for [s]."""
    noise_key: tuple[int, int]
    """Names the noise of this inference: (episode seed, tick)."""
    plan: str | None = None
    """Plan the latency budget chose; None for a policy with one plan."""
    previous: np.ndarray | None = None
    """What the chunk before means for this tick and later (m, A), in the robot's units."""
    task: str = ""
    """Instruction, as the newest observation has it."""
    delay_ticks: int = 0
    """Ticks until the chunk will be there, as far as one can tell."""
    deadline_s: float | None = None
    """When it must be there [s]; an inference that can be cut short returns what it has by then."""
    followed: tuple[int, int] | None = None
    """Tick of the observation that the chunk was made from which is being executed, and how many of its
    actions are past; None: there is none to follow, as at the beginning of an episode."""


class Worker(Protocol):
    """Computes one request at a time, beside the control loop."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight."""

    @property
    def restarts(self) -> int:
        """How often its process was replaced; 0 of one that has none."""

    def submit(self, request: Request) -> None:
        """Start an inference and return at once; the worker must be idle."""

    def poll(self, now: float) -> Chunk | None:
        """Return the chunk in flight if it is there at `now` [s]; at most once."""


Predict = Callable[[dict[str, Any], list[tuple[int, int]]], np.ndarray]
"""(key -> (B, To, ...), noise keys (B)) -> actions (B, n, A) in the robot's units."""


class BatchedInference:
    """Computes the requests of many simulated workers in one batch a plan, when the first of them is needed.

    Args:
        predict: of a request that names no plan.
        plans: name -> what computes that plan of a ladder.
    """

    def __init__(self, predict: Predict, plans: Mapping[str, Predict] | None = None) -> None:
        self._predict: dict[str | None, Predict] = {None: predict}
        self._predict.update(plans or {})
        self._waiting: dict[SimulatedWorker, Request] = {}

    def add(self, worker: "SimulatedWorker", request: Request) -> None:
        """Take a request; it is computed later, with the others."""
        self._waiting[worker] = request

    def discard(self, worker: "SimulatedWorker") -> None:
        """Forget the request of a worker, if it is not computed yet."""
        self._waiting.pop(worker, None)

    def flush(self) -> None:
        """Compute every waiting request in one batch and hand out the chunks.

        A request whose actions are not finite gets none: its inference failed, as one in a process would.

        Raises:
            BadSetting: `predict` returned another shape than (B, n, A).
        """
        waiting, self._waiting = self._waiting, {}
        for plan in dict.fromkeys(request.plan for request in waiting.values()):
            chosen = {worker: request for worker, request in waiting.items() if request.plan == plan}
            self._flush(chosen, plan)

    def _flush(self, waiting: "Mapping[SimulatedWorker, Request]", plan: str | None) -> None:
        requests = list(waiting.values())
        try:
            batch = stacked(requests) | {SLOTS: [worker.slot for worker in waiting]}
            actions = np.asarray(self._predict[plan](batch, [r.noise_key for r in requests]))
        except NonFiniteActions as error:
            if len(requests) > 1:  # one row must not cost the others their chunks
                for worker, request in waiting.items():
                    self._flush({worker: request}, plan)
            else:
                next(iter(waiting)).fail(str(error))
            return
        if actions.ndim != 3 or len(actions) != len(requests):
            raise BadSetting(
                f"predict returned shape {actions.shape} for {len(requests)} observations; "
                f"({len(requests)}, actions, action size) is needed"
            )
        for worker, chunk in zip(waiting, actions, strict=True):
            worker.receive(chunk.copy())


def stacked(requests: Sequence[Request]) -> dict[str, Any]:
    """Observations {key: (B, To, ...)} of some requests, and what is known of the chunks before."""
    batch = {key: np.stack([r.observations[key] for r in requests]) for key in requests[0].observations}
    if any(r.followed is not None for r in requests):
        batch[FOLLOWED] = np.array([r.followed or (-1, 0) for r in requests])
    known = [r.previous for r in requests if r.previous is not None]
    if not known:
        return batch
    longest = max(map(len, known))
    previous = np.full((len(requests), longest, known[0].shape[1]), np.nan, np.float32)  # NaN behind
    for row, request in zip(previous, requests, strict=True):
        if request.previous is not None:
            row[: len(request.previous)] = request.previous
    return batch | {PREVIOUS: previous, DELAY: np.array([r.delay_ticks for r in requests])}


class SimulatedWorker:
    """A worker in virtual time: its chunk is there when the latency has passed.

    Args:
        inference: shared by the workers that are batched together.
        latency_s: (number of the request, from 0, the request) -> latency [s]. A request that it is told of
            says to follow a chunk only if that one left something to it.
    """

    def __init__(self, inference: BatchedInference, latency_s: Callable[[int, Request], float]) -> None:
        self._inference, self._latency_s = inference, latency_s
        self._request: Request | None = None
        self._actions: np.ndarray | None = None
        self.asked: list[tuple[int, float]] = []
        """(tick, latency [s]) of every request so far."""
        self.errors: list[str] = []
        """What inferences failed of; they gave no chunk."""
        self.slot = Slot()
        """What the episode's newest chunk left to the next."""
        self._left_by: tuple[str | None, int] | None = None
        """Plan and tick of that chunk; None: there is none, or it failed."""
        self.restarts = 0
        """It has no process to replace."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight."""
        return self._request is not None

    def submit(self, request: Request) -> None:
        """Start an inference.

        Raises:
            BadSetting: one is in flight already.
        """
        if self._request is not None:
            raise BadSetting(
                f"a request came at tick {request.tick} while that of {self._request.tick} is in flight; "
                "a worker takes one at a time"
            )
        if request.followed and (request.plan, request.followed[0]) != self._left_by:
            request = replace(request, followed=None)  # what that chunk left is gone, or another plan's
        self._request = request
        self.asked.append((request.tick, self._latency_s(len(self.asked), request)))
        self._inference.add(self, request)

    def receive(self, actions: np.ndarray) -> None:
        """Take the computed actions (n, A) of the request in flight."""
        self._actions = actions
        if self._request is not None:
            self._left_by = self._request.plan, self._request.tick

    def fail(self, error: str) -> None:
        """Note that the request in flight gave no chunk, and what of."""
        self.errors.append(error)
        self._left_by = None

    def poll(self, now: float) -> Chunk | None:
        """Return the chunk once its latency has passed."""
        request = self._request
        if request is None:
            return None
        ready_s = request.time_s + self.asked[-1][1]
        if now < ready_s - _SLACK_S:
            return None
        if self._actions is None:
            self._inference.flush()
        actions, self._request, self._actions = self._actions, None, None
        return None if actions is None else Chunk(actions, request.tick, ready_s)

    def cancel(self) -> None:
        """Drop the request in flight, if any."""
        self._inference.discard(self)
        self._request = self._actions = None
