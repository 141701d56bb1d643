"""How many torch threads a chunk is computed with: measured, since more are slower on a busy machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from vivace.eval.identity import describe_run
from vivace.eval.measure.latencies import USUAL, Notes, kept
from vivace.eval.measure.timing import Rounds, interleaved
from vivace.eval.terminal import console, milliseconds
from vivace.policies.placement import Placement, synchroniser
from vivace.policies.session import Session

_ROUNDS, _LIMIT_S = 4, 2.0
"""Chunks each, but of slow ones no more than take so long [s]."""
Interleaved = Callable[..., dict[str, list[float]]]


def thread_counts() -> list[int]:
    """1, 2, 4, … and torch's own choice, which knows the cores there are and OMP_NUM_THREADS."""
    most = torch.get_num_threads()
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]


def choose_threads(
    runs: Mapping[str, Session],
    asked: int | None,
    notes: Notes = USUAL,
    time_them: Interleaved = interleaved,
) -> dict[str, Any]:
    """Measure how many threads suit the last of some runs best, and use as many from now on.

    Args:
        runs: name -> what is timed, on a blank observation; the last one decides.
        asked: how many to use without measuring.
        notes: where it is kept.
        time_them: times runs as `interleaved` does.

    Returns:
        "used", and as far as it was measured "latency_s": name -> {threads: median [s]}.
    """
    counts = thread_counts()
    if asked or len(counts) == 1:
        torch.set_num_threads(asked or counts[0])
        return {"used": torch.get_num_threads(), "latency_s": {}}
    what = {"threads": counts, "runs": {name: describe_run(session) for name, session in runs.items()}}
    *_, decides = runs
    placement = runs[decides].loaded.placement
    with console.status("measuring how many threads are best"):
        found = kept(what, placement, lambda: _measure(runs, counts, placement, time_them), notes)
    used = use_fastest({n: found[decides][str(n)] for n in counts}, f"a chunk of {decides}")
    return {"used": used, "latency_s": found}


def use_fastest(times_s: Mapping[int, float], what: str) -> int:
    """Use from now on as many threads as took the least time [s], the fewest of equals; says so.

    Args:
        times_s: number of threads -> what it took.
        what: was timed, in words.
    """
    best = min(times_s, key=lambda n: (times_s[n], n))
    torch.set_num_threads(best)
    told = ", ".join(f"{n}: {milliseconds(time_s, 1)} ms" for n, time_s in times_s.items())
    console.print(f"torch threads: {best} ({what} with {told})", highlight=False)
    return best


def _measure(
    runs: Mapping[str, Session], counts: list[int], placement: Placement, time_them: Interleaved
) -> dict[str, dict[str, float]]:
    named = {f"{name} {n}": partial(_chunk, session, n) for name, session in runs.items() for n in counts}
    rounds = Rounds(repeats=1, more=dict.fromkeys(named, _ROUNDS), limit_s=_LIMIT_S, warmup=0)
    times = time_them(named, rounds, synchronise=synchroniser(placement.device))
    return {name: {str(n): float(np.median(times[f"{name} {n}"])) for n in counts} for name in runs}


def _chunk(session: Session, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    session.predict(session.blank_observation(), [(0, 0)])


@contextmanager
def restored_threads() -> Iterator[None]:
    """Leave torch's threads as they were."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
