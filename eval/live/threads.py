"""How many threads compute a chunk: measured before the robot is there; more are slower on a busy machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.loop.warm_up import warm_up
from vivace.eval.live.parts import make_worker
from vivace.eval.live.settings import RunCommand
from vivace.eval.machine import cores
from vivace.policies.errors import BadSetting

_CHUNKS = 3
"""Timed with each number of threads, after one that is not."""


@dataclass(frozen=True)
class Threads:
    """Those of one inference."""

    n: int
    told: str
    """Who said so many."""
    latency_s: Mapping[int, float] = field(default_factory=dict)
    """Number -> median time of a chunk [s], where it was measured."""


def choose_threads(command: RunCommand, plans: Mapping[str, Bundle]) -> Threads:
    """Return what the user asks for, else as many as are fastest now; each is tried in a process of its own.

    Raises:
        BadSetting: the policy fails with every number.
    """
    asked, most = command.inference.threads, cores()
    if asked:
        return Threads(asked, "as given")
    if most == 1 or command.inference.providers != ["cpu"]:
        return Threads(most, "one for every core it may use; --inference.threads says another")
    counts = [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]
    return fastest(counts, partial(_timed, command, plans))


def fastest(counts: Sequence[int], time_chunks: Callable[[int], Sequence[float]]) -> Threads:
    """Return the number with the least median time, the least of equals.

    Args:
        counts: numbers of threads to try.
        time_chunks: computes chunks with so many, and returns how long each took [s].

    Raises:
        BadSetting: `time_chunks` raises it for every number: the policy fails, or takes too long.
    """
    times: dict[int, float] = {}
    failed = None
    for n in counts:
        try:
            times[n] = median(time_chunks(n))
        except BadSetting as error:
            failed = error
    if failed is not None and not times:
        raise failed
    best = min(times, key=lambda n: (times[n], n))
    told = ", ".join(f"{n}: {1e3 * time_s:.1f} ms" for n, time_s in times.items())
    return Threads(best, f"measured ({told}); --inference.threads says another", times)


def _timed(command: RunCommand, plans: Mapping[str, Bundle], n: int) -> Sequence[float]:
    """How long chunks take with so many threads [s]."""
    bundle, options = plans[command.bundle], command.inference
    worker = make_worker(command, {command.bundle: bundle}, n)
    try:
        worker.start()
        task = command.instruction or bundle.usual_task
        return warm_up(worker, bundle.spec, task, 1 + _CHUNKS, options.stall_s, observations=bundle.example)[
            1:
        ]
    finally:
        worker.close()
