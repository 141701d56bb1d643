"""Who runs what: units go to workers that are free, those of a worker that died to another one.

It knows of no process and no cluster, so that a test runs it with a thousand made-up workers.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vivace.policies.errors import WorkerLost

_DEATHS = 2
"""A unit is given up when so many workers died of it: one is bad luck, two are the unit."""


@dataclass(frozen=True)
class Ready:
    """A worker has loaded the policy."""


@dataclass(frozen=True)
class Result:
    """A worker has a result, such as that of an episode; its unit goes on."""

    what: Any


@dataclass(frozen=True)
class Done:
    """A worker is done with its unit."""

    what: Any = None
    """What it tells at last, such as its times."""


@dataclass(frozen=True)
class Died:
    """A worker is gone."""

    how: str


@dataclass(frozen=True)
class Failed:
    """A unit, or the beginning of a worker, raised an error; it would anywhere."""

    error: Exception


News = Ready | Result | Done | Died | Failed


class Crew(Protocol):
    """Workers, by number, each with one unit at a time at most."""

    def begin(self) -> int:
        """Start one more worker and return its number at once."""

    def give(self, worker: int, unit: Any) -> None:
        """Hand a unit to a worker that is ready and free; that it died meanwhile is news, not an error."""

    def news(self) -> Sequence[tuple[int, News]]:
        """Wait until there is news, and return it: number of a worker and what of it."""

    def close(self) -> None:
        """End all workers."""


class Schedule:
    """Hands units to the workers of a crew; those that are free stay for the next units.

    Args:
        crew: the workers.
        n: how many there should be.
        tell: told in a line what went wrong, while the rest goes on.
    """

    def __init__(self, crew: Crew, n: int, tell: Callable[[str], None] = lambda line: None) -> None:
        self._crew, self._tell = crew, tell
        self._free: list[int] = []
        self._starting = {crew.begin() for _ in range(n)}

    def run(self, units: Collection[Any], on_news: Callable[[Any, Any], None]) -> dict[Any, str]:
        """Run units, in their order as far as workers are free.

        Args:
            units: what to run; hashable.
            on_news: called with (unit, what) for every `Result` and `Done`.

        Returns:
            Unit that was given up -> how its last worker died.

        Raises:
            WorkerLost: no worker is left.
            Exception: what a unit raised.
        """
        waiting, at_work = deque(units), dict[int, Any]()
        deaths, given_up = Counter[Any](), dict[Any, str]()
        while waiting or at_work:
            while waiting and self._free:
                worker = self._free.pop()
                at_work[worker] = waiting.popleft()
                self._crew.give(worker, at_work[worker])
            for worker, news in self._crew.news():
                match news:
                    case Ready():
                        self._starting.discard(worker)
                        self._free.append(worker)
                    case Result(what):
                        on_news(at_work[worker], what)
                    case Done(what):
                        on_news(at_work.pop(worker), what)
                        self._free.append(worker)
                    case Failed(error):
                        raise error
                    case Died(how) if worker in self._starting:
                        self._starting.discard(worker)
                        self._go_on_without(how, len(at_work))
                    case Died(how):
                        self._replace(worker)
                        if worker not in at_work:
                            continue
                        unit = at_work.pop(worker)
                        deaths[unit] += 1
                        if deaths[unit] == _DEATHS:
                            given_up[unit] = how
                        else:
                            self._tell(f"a worker died of {unit} ({how}); another one runs them")
                            waiting.appendleft(unit)
        return given_up

    def _replace(self, dead: int) -> None:
        if dead in self._free:
            self._free.remove(dead)
        self._starting.add(self._crew.begin())

    def _go_on_without(self, how: str, n_at_work: int) -> None:
        """Do without a worker that died before it could do anything: the next one would too."""
        left = n_at_work + len(self._free) + len(self._starting)
        if not left:
            raise WorkerLost(
                f"no worker lived to run an episode, the last one {how} while it loaded the policy; give "
                "fewer workers, or none, to see what is wrong"
            )
        self._tell(f"a worker {how} while it loaded the policy; {left} go on")
