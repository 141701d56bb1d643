"""Workers as `ScaleOptions` ask for them."""

import pickle
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, TypeVar

from vivace.eval.machine import cores
from vivace.eval.scale.local import Arguments, LocalCrew
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.scale.schedule import Crew, Schedule
from vivace.eval.scale.worker import Calling, Start
from vivace.eval.terminal import console
from vivace.policies.errors import WorkerLost

_A = TypeVar("_A")
_R = TypeVar("_R")
_AHEAD = 4
"""Calls of a worker that are begun before it is known whether they are needed."""


def hire(scale: ScaleOptions, start: Start, arguments: Arguments) -> tuple[Crew, Schedule, int]:
    """Begin workers.

    Args:
        scale: which, and how many.
        start: what each begins with.
        arguments: unit -> arguments of `Running.run`.

    Returns:
        The workers, to be closed; who hands units to them; how many there are.
    """
    pickled = pickle.dumps(start)
    if scale.ray:
        from vivace.eval.scale.ray_crew import RayCrew

        cluster = RayCrew(scale.ray, pickled, scale.threads, arguments)
        return cluster, Schedule(cluster, cluster.n, warn), cluster.n
    n, there_are = scale.workers or 1, cores()
    if n * scale.threads > there_are:
        warn(f"{n} workers of {scale.threads} torch threads get in each other's way on {there_are} cores")
    crew = LocalCrew(pickled, scale.threads, arguments)
    return crew, Schedule(crew, n, warn), n


def spread(scale: ScaleOptions) -> Callable[[Callable[[_A], _R], Iterable[_A]], Generator[_R, None, None]]:
    """Return what stands for `map` where calls are to be made by workers.

    Results come in the order of the arguments, of which some more are called than are read.
    """

    def mapped(function: Callable[[_A], _R], arguments: Iterable[_A]) -> Generator[_R, None, None]:
        crew, schedule, n = hire(scale, Calling(function), lambda argument: (argument,))
        rest = iter(arguments)
        try:
            while some := list(islice(rest, _AHEAD * n)):
                found: dict[_A, _R] = {}

                def keep(argument: _A, result: Any, found: dict[_A, _R] = found) -> None:
                    found.setdefault(argument, result)

                if given_up := schedule.run(some, keep):
                    raise WorkerLost(f"two workers died of each of {', '.join(map(str, given_up))}")
                yield from (found[argument] for argument in some)
        finally:
            crew.close()

    return mapped


def warn(line: str) -> None:
    """Tell what went wrong while the rest goes on."""
    console.print(line, style="yellow", highlight=False, markup=False)
