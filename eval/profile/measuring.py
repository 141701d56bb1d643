"""Measure a machine: `vivace bench --bench.profile=FILE`.

Measured part by part are the policy as trained, exact work removed, every technique as it is and every row
of a table: they call blocks at the sizes, and in the precisions, that the techniques can ask for. Measured as
whole chunks, in the same rounds, are plans that the profile is not made of: what has to be beaten, such as
fewer steps, combinations chosen at random, and one of them under what computes the same faster. They say how
well the profile predicts.
"""

import resource
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vivace.accel.apply import calibrated
from vivace.accel.technique import CalibrationData
from vivace.eval.machine import commit, machine, versions
from vivace.eval.measure.latencies import chunks_in_turn, first_chunk
from vivace.eval.measure.threads import choose_threads
from vivace.eval.measure.timing import Rounds, interleaved
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.profile.ledger import Key, Meter, Part, counted, cycle_of, timed
from vivace.eval.profile.profile import Check, Profile, Unpredictable, in_words, way_of
from vivace.eval.subject import session
from vivace.eval.terminal import FoldingTable, console, progress
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.space import Space, describe, space_of
from vivace.eval.tune.study import Study
from vivace.policies.errors import in_one_line
from vivace.policies.execution import executing
from vivace.policies.load import LoadedPolicy
from vivace.policies.placement import synchroniser
from vivace.policies.plain_data import plain
from vivace.policies.session import Session
from vivace.policies.stopwatch import StageWatch

if TYPE_CHECKING:
    from vivace.eval.verbs.bench import BenchCommand

_SPREAD = 100
"""Rounds of the plan by which the spread is told: as many as a p99 takes."""
_LONG_S = 60.0
"""As often it is timed only where that takes no longer [s]."""
_RIVALS, _CHECKS, _TRIES = 4, 9, 16
"""Plans that predictions are held against: of those that have to be beaten; in all; combinations that are
tried for it, some of which do not go together."""


@dataclass
class _Run:
    """A plan that is measured."""

    label: str
    session: Session
    parts: Mapping[Key, Part]

    @classmethod
    def of(cls, label: str, run: Session, data: CalibrationData) -> "_Run":
        """Count what its chunk is made of."""
        return cls(label, run, counted(run, data))

    @property
    def n(self) -> int:
        """Chunks that are timed at once."""
        return cycle_of(self.session.execution)


@dataclass
class _Made:
    """Candidates made ready, and why others could not be."""

    runs: dict[str, _Run] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def write_profile(command: "BenchCommand", loaded: LoadedPolicy, path: Path) -> dict[str, Any]:
    """Measure this machine and write a profile; returns what is said of it."""
    space = space_of(loaded.staged)
    fitted = observe(command, loaded)
    data = observe(command, loaded, seed=JUDGEMENT_SEED)
    made = _made(command, loaded, _fitted(space), fitted, data)
    checked = _made(command, loaded, _checked(space, command.seed), fitted, data, _CHECKS)
    exact = made.runs.get(Candidate(space.exact).key) or next(iter(made.runs.values()))
    choose_threads({"exact": exact.session}, command.bench.threads)
    profile = _measured(command, loaded, made, checked, exact, data)
    profile.save(path)
    rows = [in_words(check) for check in profile.checks]
    console.print(
        FoldingTable("held against the profile", ("plan", "predicted [ms]", "measured [ms]", "off by"), rows)
    )
    for label, reason in profile.left_out.items():
        console.print(f"left out: {label}: {reason}", style="yellow", highlight=False)
    console.print(profile.told, highlight=False)
    p50, p99 = np.percentile(profile.spread, [50, 99])
    return {
        "profile": str(path),
        "told": profile.told,
        "checks": [vars(check) | {"error": check.error} for check in profile.checks],
        "p99_over_p50": float(p99 / p50),
        "first_over_later": dict(profile.first_over_later),
        "memory_mb": profile.memory_mb,
        "left_out": dict(profile.left_out),
    }


def _fitted(space: Space) -> Iterator[Candidate]:
    """What the profile is made of."""
    for one in space.starters():
        if one.origin is not Origin.BASELINE:
            yield one


def _checked(space: Space, seed: int) -> Iterator[Candidate]:
    """What it is held against."""
    fitted, starters = list(_fitted(space)), space.starters()
    known = {one.key for one in fitted}
    rivals = [one for one in starters if one.origin is Origin.BASELINE and one.key not in known]
    yield from rivals[:_RIVALS]
    for one in rivals[:1]:
        faster = [row for row in starters if row.same_work]
        yield from [one.computed_as(row) for row in faster[:1]]
    study = Study(space, seed)
    for one in fitted:
        study.tell(_known(one))
    for _ in range(_TRIES):
        asked = study.ask()
        if asked is None:
            return
        study.tell(_known(asked))
        yield asked


def _known(candidate: Candidate) -> Trial:
    """A candidate that is not to be asked for again."""
    return Trial(candidate=candidate, status=Status.FAILED)


def _made(
    command: "BenchCommand",
    loaded: LoadedPolicy,
    candidates: Iterable[Candidate],
    fitted: CalibrationData,
    data: CalibrationData,
    most: int | None = None,
) -> _Made:
    """Calibrate candidates, so many at most, and count what they call; one that cannot be is left out."""
    made = _Made()
    for one in candidates:
        if len(made.runs) == most:
            break
        try:
            with console.status(f"making ready: {describe(one)}"):
                policy = executing(loaded.staged, one.execution.n_action_steps)
                execution = calibrated(policy, loaded.fingerprint, fitted, one.requests)[1]
                run = session(command, loaded, execution)
                made.runs[one.key] = _Run.of(describe(one), run, data)
        except Exception as error:
            made.left_out[describe(one)] = f"{type(error).__name__}: {in_one_line(error)}"
    return made


def _measured(
    command: "BenchCommand",
    loaded: LoadedPolicy,
    made: _Made,
    checked: _Made,
    exact: _Run,
    data: CalibrationData,
) -> Profile:
    """Time all of it in the same rounds."""
    synchronise = synchroniser(loaded.placement.device)
    meters = {key: Meter(synchronise) for key in made.runs}
    watch = StageWatch(synchronise)
    timing = {
        f"parts {key}": chunks_in_turn(meters[key].metered(run.session), data, meters[key])
        for key, run in made.runs.items()
    }
    timing |= {
        f"check {key}": chunks_in_turn(run.session, data, StageWatch(synchronise))
        for key, run in checked.runs.items()
    }
    timing["whole"] = chunks_in_turn(exact.session, data, watch)
    following = {run.label: run for run in made.runs.values() if run.session.execution.carries}
    for label, run in following.items():
        timing[f"first {label}"] = partial(_one_first, run.session, cycle(data.ones()))
        timing[f"later {label}"] = chunks_in_turn(run.session, data, StageWatch(synchronise))
    rounds = Rounds(repeats=command.bench.repeats, more={"whole": _SPREAD}, limit_s=_LONG_S)
    with progress() as bars:
        bar = bars.add_task("measuring, interleaved", total=1 + rounds.most)
        times = interleaved(
            timing, rounds, on_round=lambda done: bars.update(bar, completed=done), synchronise=synchronise
        )
    own = next(key for key, run in made.runs.items() if run is exact)
    n = len(times[f"parts {own}"])  # a slow spell then falls on both
    scale = _scale(watch.chunks[-len(times["whole"]) :][:n], meters[own].chunks[-n:])
    ways = _ways((run, meters[key].chunks[-len(times[f"parts {key}"]) :]) for key, run in made.runs.items())
    ways = {
        way: {name: _scaled(some, scale, name) for name, some in parts.items()} for way, parts in ways.items()
    }
    profile = Profile(
        machine=machine(loaded.placement),
        versions=versions(),
        commit=commit(),
        fingerprint=plain(loaded.fingerprint),
        continues=command.loop.chunking is not None,
        ways=ways,
        spread=[round(one, 5) for one in sorted(np.array(times["whole"]) / np.median(times["whole"]))],
        checks=(),
        first_over_later={
            label: float(np.median(times[f"first {label}"]) * run.n / np.median(times[f"later {label}"]))
            for label, run in following.items()
        },
        memory_mb=_memory_mb(loaded),
        left_out=made.left_out,
    )
    return _with_checks(profile, checked, times)


def _with_checks(profile: Profile, checked: _Made, times: Mapping[str, Sequence[float]]) -> Profile:
    """Hold what was measured of whole chunks against what the profile says of them."""
    checks, left_out = [], dict(profile.left_out)
    for key, run in checked.runs.items():
        try:
            predicted_s = profile.chunk_s(way_of(run.session.execution), run.parts.values())
        except Unpredictable as error:
            left_out[run.label] = str(error)
            continue
        checks.append(Check(run.label, predicted_s, float(np.median(times[f"check {key}"])) / run.n))
    return replace(profile, checks=tuple(checks), left_out=left_out)


def _ways(
    seen: Iterable[tuple[_Run, list[dict[Key, Any]]]],
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Gather the times of calls: way -> part -> (work, time [s]), ascending, the median of equal work."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for run, chunks in seen:
        parts = found[way_of(run.session.execution)]
        for key, times_s in timed(chunks, run.parts, run.n).items():
            part = run.parts[key]
            parts[part.name].setdefault(part.flops, []).append(float(np.median(times_s)))
    return {
        way: {
            name: [(flops, float(np.median(some))) for flops, some in sorted(points.items())]
            for name, points in parts.items()
        }
        for way, parts in found.items()
    }


def _scale(whole: list[dict[str, float]], parts: list[dict[Key, Any]]) -> dict[str, float]:
    """By how much less a stage takes where its blocks are not timed one by one: stage -> factor."""
    stages: dict[str, list[float]] = defaultdict(list)
    for chunk in parts:
        sums: dict[str, float] = defaultdict(float)
        for (stage, _, _), tally in chunk.items():
            sums[stage] += tally.time_s
        for stage, time_s in sums.items():
            stages[stage].append(time_s)
    known = {stage: [chunk[stage] for chunk in whole if stage in chunk] for stage in stages}
    return {
        stage: float(np.median(known[stage])) / max(float(np.median(times_s)), 1e-12)
        for stage, times_s in stages.items()
        if known[stage]
    }


def _scaled(
    points: list[tuple[int, float]], scale: Mapping[str, float], name: str
) -> list[tuple[int, float]]:
    factor = scale.get(name.split("/", 1)[0], 1.0)
    return [(flops, time_s * factor) for flops, time_s in points]


def _one_first(run: Session, ones: Iterator[CalibrationData]) -> None:
    first_chunk(run, next(ones))


def _memory_mb(loaded: LoadedPolicy) -> float:
    """Most memory that this process, or its device, had by now [MB]."""
    if loaded.placement.device.type == "cuda":
        return torch.cuda.max_memory_reserved(loaded.placement.device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
