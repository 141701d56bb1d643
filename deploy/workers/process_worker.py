"""A worker in a process of its own: inference cannot stall the control loop, and the GIL is not shared.

Observations and actions travel through shared memory, a few numbers through a pipe. One request is in flight
at a time. A process that dies or stalls is replaced while the loop goes on with what it has.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.inference.ort_graph import Graphs, Runtime, share_threads
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.system.realtime import allowed_cpus
from vivace.deploy.workers.shared_arrays import SharedArrays
from vivace.deploy.workers.worker import Request, stacked
from vivace.policies.arrays import enter_observations, enter_previous, entered, observation_layout
from vivace.policies.errors import BadSetting, ObservationMismatch
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.spec import PREVIOUS, Chunk, PolicySpec
from vivace.policies.training_range import PLAUSIBLE_SPANS

_CONTEXT = get_context("spawn")  # a forked process would inherit ONNX Runtime's locks
_ACTIONS = "actions"
_KEPT = 100
"""Errors that are remembered."""
_LONGEST_PAUSE_S = 5.0
"""Before a process that failed again and again is started once more."""


class Inference(Protocol):
    """What the process runs."""

    def __call__(self, request: Request) -> np.ndarray:
        """Return actions (n, A) in the robot's units."""


class Bundles:
    """Exported plans of one policy by name, the first one the usual one; the process does nothing else."""

    def __init__(
        self,
        references: Mapping[str, str | Path],
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
        chunking: RealTimeChunking | None = None,
        public_key: str = "",
        plausible_spans: float = PLAUSIBLE_SPANS,
    ) -> None:
        share_threads(threads)
        graphs = Graphs(Runtime.of(providers, threads, shares_threads=True))
        self._policies = {
            name: OrtPolicy(
                Bundle.load(reference, public_key),
                chunking=chunking,
                plausible_spans=plausible_spans,
                graphs=graphs,
            )
            for name, reference in references.items()
        }

    def __call__(self, request: Request) -> np.ndarray:
        """Run the plan that was chosen."""
        plan = next(iter(self._policies)) if request.plan is None else request.plan
        policy = self._policies[plan]
        policy.task = request.task
        actions: np.ndarray = policy.predict(stacked([request]), [request.noise_key], request.deadline_s)[0]
        return actions


def bundles(
    references: Mapping[str, str | Path],
    providers: Sequence[str] = ("cpu",),
    threads: int | None = None,
    chunking: RealTimeChunking | None = None,
    public_key: str = "",
    plausible_spans: float = PLAUSIBLE_SPANS,
) -> Callable[[], Inference]:
    """Return what loads bundles in the process, checks and replays them; see `Bundles` and `OrtPolicy`."""
    options = (tuple(providers), threads, chunking, public_key, plausible_spans)
    return partial(Bundles, dict(references), *options)


class ProcessWorker:
    """Computes chunks in another process.

    Args:
        load: called once in the process, returns what it runs; must be picklable (`bundles`).
        spec: of the policy.
        stall_s: a request that takes longer is given up, and the process replaced [s].
        patience_s: how long `start` waits for the process to load [s].
    """

    def __init__(
        self,
        load: Callable[[], Inference],
        spec: PolicySpec,
        *,
        stall_s: float = 5.0,
        patience_s: float = 60.0,
    ) -> None:
        if not stall_s > 0:
            raise BadSetting(f"stall_s={stall_s}; seconds above 0 are needed")
        self._load, self._spec, self._stall_s, self._patience_s = load, spec, stall_s, patience_s
        self._shared = SharedArrays(_layout(spec), _CONTEXT)
        self._arrays = self._shared.views()
        self._request: Request | None = None
        self._process: Any = None
        self._pipe: Connection | None = None
        self._starter: threading.Thread | None = None
        self._cpus = allowed_cpus()  # a loop that pins its thread later must not pin new processes with it
        self._is_closed = threading.Event()
        self._fruitless = 0
        self.is_ready = False
        """The process has loaded and waits."""
        self.restarts = 0
        """Processes that were replaced."""
        self.errors: list[str] = []
        """What the last requests failed of, newest last."""

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            BadSetting: it could not load, or took too long.
        """
        self._spawn()
        pipe, deadline = self._pipe, time.monotonic() + self._patience_s
        while pipe is not None and not self.is_ready:
            is_alive = self._process.is_alive()
            pipe.poll(0.05)
            self._listen()
            if self.errors:
                self.close()
                raise BadSetting(f"the inference process could not load the policy: {self.errors[-1]}")
            if not self.is_ready and (not is_alive or time.monotonic() > deadline):
                self.close()
                raise BadSetting("the inference process ended or hangs before it was ready; see its output")

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight, or the process is not ready."""
        self._watch()
        return self._request is not None or not self.is_ready

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    def submit(self, request: Request) -> None:
        """Start an inference; a request with arrays of another form has failed at once (`errors`).

        Raises:
            BadSetting: one is in flight, or the process is not ready.
        """
        if self._request is not None or not self.is_ready or self._pipe is None:
            raise BadSetting(f"a request came at tick {request.tick} while the worker was busy")
        try:
            n = self._write(request)
        except ObservationMismatch as error:  # as an inference that fails: the loop goes on with what it has
            self._note(f"tick {request.tick}: {error}")
            return
        self._request = request
        try:
            self._pipe.send((replace(request, observations={}, previous=None), n))
        except OSError:
            self._replace(f"it was gone at tick {request.tick}")

    def _write(self, request: Request) -> int:
        """Write a request's arrays where the process reads them; returns how many actions are known before.

        Raises:
            ObservationMismatch: an array is missing, or has another shape or kind.
        """
        seen = enter_observations(request.observations, observation_layout(self._spec))
        n, before = 0, request.previous
        if before is not None:
            previous, _ = enter_previous({PREVIOUS: np.asarray(before)[None]}, self._spec, rows=1)
            n = min(len(before), self._spec.horizon)
            self._arrays[PREVIOUS][:n] = previous[0, :n]
        for key, value in seen.items():
            self._arrays[key][...] = value
        return n

    def poll(self, now: float) -> Chunk | None:
        """Return the chunk if it is there; at most once."""
        chunk = self._listen()
        self._watch(now)
        return chunk

    def close(self) -> None:
        """End the process."""
        self._is_closed.set()
        if self._starter is not None:
            self._starter.join()
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process, self._pipe, self._request, self.is_ready = None, None, None, False

    def _spawn(self) -> None:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_serve, args=(self._load, self._shared, self._spec, theirs, self._cpus), daemon=True
        )
        with _unsignalled():
            process.start()
        theirs.close()
        self._process, self._pipe = process, ours

    def _listen(self) -> Chunk | None:
        """Take what the process says."""
        if self._pipe is None:
            return None
        try:
            if not self._pipe.poll(0):
                return None
            kind, tick, value, time_s = self._pipe.recv()
        except (EOFError, OSError):
            return None  # it is gone: `_watch` sees to it
        if kind == "ready":
            self.is_ready = True
            return None
        request, self._request = self._request, None
        if kind == "error":
            self._note(value)
            return None
        self._fruitless = 0
        if request is None or request.tick != tick:
            return None
        return Chunk(self._arrays[_ACTIONS][:value].copy(), tick, time_s)

    def _watch(self, now: float | None = None) -> None:
        """Replace the process if it died, or has been at a request for too long."""
        if self._starter is not None:
            if self._starter.is_alive():
                return
            self._starter = None
        if self._process is None:
            return
        if not self._process.is_alive():
            self._replace("it died")
        elif self._request is not None:
            now = time.monotonic() if now is None else now
            if now - self._request.time_s > self._stall_s:
                self._replace(f"it took more than {self._stall_s} s for the request of {self._request.tick}")

    def _replace(self, why: str) -> None:
        """Start another process, beside the loop: starting one takes longer than a tick may."""
        self._note(f"the inference process was replaced: {why}")
        self.restarts += 1
        pause_s = min(0.1 * 2 ** min(self._fruitless, 9) - 0.1, _LONGEST_PAUSE_S)
        self._fruitless += 1
        self.is_ready, self._request = False, None
        old, pipe = self._process, self._pipe
        self._process = self._pipe = None

        def start() -> None:
            if pipe is not None:
                pipe.close()
            old.kill()
            old.join()
            if not self._is_closed.wait(pause_s):
                self._spawn()

        self._starter = threading.Thread(target=start, daemon=True)
        self._starter.start()

    def _note(self, error: str) -> None:
        self.errors.append(error)
        del self.errors[:-_KEPT]


@contextmanager
def _unsignalled() -> Iterator[None]:
    """Meanwhile start processes that Ctrl-C or a terminal's end does not reach: the loop decides when to end.

    They inherit which signals are blocked, from their first instruction on.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing does so when it starts one, and unblocks SIGINT
    names = ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTSTP")
    of_terminals = {getattr(signal, name) for name in names if hasattr(signal, name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, of_terminals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _layout(spec: PolicySpec) -> dict[str, tuple[tuple[int, ...], str]]:
    actions = ((spec.horizon, spec.action_dim), "float32")
    return {**observation_layout(spec), PREVIOUS: actions, _ACTIONS: actions}


def _serve(
    load: Callable[[], Inference], shared: SharedArrays, spec: PolicySpec, pipe: Connection, cpus: set[int]
) -> None:
    """Answer requests until the other side hangs up or is gone; the life of the process."""
    with suppress(EOFError, OSError):
        _answer(load, shared, spec, pipe, cpus)


def _answer(
    load: Callable[[], Inference], shared: SharedArrays, spec: PolicySpec, pipe: Connection, cpus: set[int]
) -> None:
    if cpus:
        os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the loop decides when to end
    arrays = shared.views()
    try:
        infer = load()
    except Exception as error:  # whatever it is, the loop's side must know
        pipe.send(("error", None, f"{type(error).__name__}: {error}", time.monotonic()))
        return
    pipe.send(("ready", None, None, time.monotonic()))
    while True:
        request, n_previous = pipe.recv()
        observations = {key: arrays[key] for key in spec.observation_shapes}
        previous = arrays[PREVIOUS][:n_previous] if n_previous else None
        tick = request.tick
        try:
            actions = infer(replace(request, observations=observations, previous=previous))
            _copy_actions(arrays[_ACTIONS], actions)
        except Exception as error:  # one bad request must not end the process
            pipe.send(("error", tick, f"tick {tick}: {type(error).__name__}: {error}", time.monotonic()))
            continue
        pipe.send(("chunk", tick, len(actions), time.monotonic()))


def _copy_actions(target: np.ndarray, actions: np.ndarray) -> None:
    """Copy actions (n, A) to the beginning of a chunk (H, A); raises `ObservationMismatch`."""
    found = np.asarray(actions)
    n = len(found) if found.ndim else 0
    shape = (min(max(n, 1), len(target)), target.shape[1])
    target[:n] = entered("the chunk", found, shape, "float32")
