"""What came of one episode, and the file an interrupted evaluation continues from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vivace.deploy.loop.loop import Source, TickRecord
from vivace.eval.output import append_line
from vivace.policies.backports import Self
from vivace.policies.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What came of one episode."""

    seed: int
    success: bool
    steps: int
    """Ticks until it ended."""
    time_to_success_s: float | None
    """None without success."""
    ticks: dict[str, int]
    """Source ("chunk", "stale", "fallback") -> ticks that executed it."""
    deadline_misses: int
    interventions: int
    """Actions the guard refused or changed."""
    latencies_s: tuple[float, ...]
    """Latency of every request, in order."""
    request_ticks: tuple[int, ...] = ()
    """Tick of every request, in order."""
    seam_jumps: tuple[float, ...] = ()
    """Change of the action |a_t - a_(t-1)| at each tick that went over to another chunk, to the fallback, or
    back from it."""
    inner_jumps: tuple[float, ...] = ()
    """The same at each tick that went on with its chunk."""
    score: float | None = None
    """Best score of a world that gives one, such as PushT's coverage."""
    choices: dict[str, int] = field(default_factory=dict)
    """Plan of the ladder -> requests it was chosen for; empty without a ladder."""
    timeline: str = ""
    """Source of every tick by its first letter, e.g. "ffccccs"."""
    errors: tuple[str, ...] = ()
    """What inferences failed of; they gave no chunk."""
    records: tuple[TickRecord, ...] = field(default=(), repr=False, compare=False)
    """Every tick; not stored in files."""

    @property
    def fresh_share(self) -> float:
        """Share of ticks that executed a fresh action; times control_hz: the effective control rate."""
        return self.ticks[Source.CHUNK.value] / self.steps if self.steps else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data without the tick records."""
        return {name: getattr(self, name) for name in _STORED}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Restore a result from plain data.

        Raises:
            BadSetting: fields are missing or unknown.
        """
        if not isinstance(data, dict) or set(data) != set(_STORED):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise BadSetting(
                f"an episode result has {found}; needed: {', '.join(_STORED)}; it is "
                "another program's or version's, choose another folder"
            )
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**plain)


def jumps(records: Sequence[TickRecord]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Changes of the action from tick to tick: where what is executed changes, and inside chunks.

    A robot that stops to think jumps too: where the fallback takes over, and where a chunk does again. What
    comes before the first chunk does not count.
    """
    seams: list[float] = []
    inner: list[float] = []
    for before, now in pairwise(dropwhile(lambda record: record.chunk_id is None, records)):
        jump = round(float(np.linalg.norm(now.action - before.action)), 4)
        if now.chunk_id != before.chunk_id:
            seams.append(jump)
        elif now.chunk_id is not None:
            inner.append(jump)
    return tuple(seams), tuple(inner)


def mean_jump(episodes: Iterable[Sequence[float]]) -> float | None:
    """Mean of all jumps of some episodes; None if there are none."""
    found = [jump for jumps in episodes for jump in jumps]
    return float(np.mean(found)) if found else None


_STORED = tuple(f.name for f in fields(EpisodeResult) if f.name != "records")


def append_result(path: Path, result: EpisodeResult) -> None:
    """Append one result to a JSON-lines file; raises `NoRoom` if it cannot be written."""
    append_line(path, json.dumps(result.to_json()))


def load_results(path: Path) -> list[EpisodeResult]:
    """Read the results a file holds; none if it does not exist.

    A line that was cut off while it was written is left out: its episode runs again, to the same result.

    Raises:
        BadSetting: a line is whole, but no episode result.
    """
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        results.append(EpisodeResult.from_json(data))
    return results
