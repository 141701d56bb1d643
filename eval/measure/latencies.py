"""Latencies of several runs on this machine, measured together and kept for the next time.

What is timed is a chunk as the control loop asks for one: from observations in the robot's units to actions
in them, with the chunk before that it continues. Where chunks make use of those before, it is one that
follows another (steady state). The first of an episode, and those after a late one, take longer: an
evaluation has them timed apart.

Keeping latencies makes an evaluation repeatable: with the same seed, machine, policy, plan and code a second
run meets the same ones. `--latency.refresh=true` measures again.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vivace.accel.technique import CalibrationData
from vivace.eval.identity import describe_observations, describe_run, digest, source_digest
from vivace.eval.machine import machine, versions
from vivace.eval.measure.timing import Rounds, interleaved
from vivace.eval.output import read_json, write_json
from vivace.eval.terminal import progress
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.carry import FOLLOWED, SLOTS, Slot
from vivace.policies.errors import BadSetting, UnsupportedPolicy, in_one_line
from vivace.policies.execution import Decoding, Denoising, Execution, eagerly, sample
from vivace.policies.placement import Placement, synchroniser
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS
from vivace.policies.staged import has_language
from vivace.policies.stopwatch import StageWatch

CACHE = Path("outputs/latency")
_ALIKE = 0.03
"""Mean difference of normalised actions that rounding may make of code that computes the same, in bfloat16 or
with tokens that are near each other; code that was compiled wrongly is off by more."""


@dataclass(frozen=True)
class Notes:
    """Where measurements are kept, and which ones will do."""

    folder: Path = CACHE
    refresh: bool = False
    """Measure again although it is known."""
    of_any_machine: bool = False
    """Those of another machine will do, as shares of one command need: they all meet the same latencies."""
    only_known: bool = False
    """Nothing is measured here: what is not known is refused."""


USUAL = Notes()


Chunk = Session | Callable[[CalibrationData], object]
"""What computes a chunk of one observation; of a `Session` the stages are told apart."""


class Watch(Protocol):
    """Told what a chunk does, as a `StageWatch` is."""

    def start(self) -> None:
        """A chunk begins, or those of a cycle."""

    def __call__(self, stage: str) -> None:
        """A stage is over."""

    def begins_to_read(self) -> None:
        """The first language layer begins."""


@dataclass(frozen=True)
class Measured:
    """What was measured of several runs in the same rounds."""

    times_s: dict[str, list[float]]
    """Name -> latencies [s], in the order of the rounds; some may have been timed in more of them."""
    stages_s: dict[str, dict[str, float]]
    """Name -> median time of each stage [s], of those whose stages are told apart."""
    first_s: dict[str, list[float]] = field(default_factory=dict)
    """Name -> latencies [s] of chunks that follow none, of those that make use of the chunk before."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Name of a run that is out of the question -> why; its latencies may be missing."""
    raised: dict[str, str] = field(default_factory=dict)
    """Name of a run that was left out for what it raised -> what; its latencies are missing."""

    def median_s(self, name: str) -> float:
        """Median latency of a run [s]."""
        return float(np.median(self.times_s[name]))


def chunk_latencies(runs: Mapping[str, Chunk], data: CalibrationData, rounds: Rounds) -> Measured:
    """Time chunks of every run at batch 1, interleaved.

    Args:
        runs: name -> what to time.
        data: observations, one a round, in turn: decoding some takes longer than others.
        rounds: how often.
    """
    device = next(iter(data.batch.values())).device
    synchronise = synchroniser(device)
    watches = {name: StageWatch(synchronise) for name, run in runs.items() if isinstance(run, Session)}
    timed: dict[str, Callable[[], None]] = {}
    raised: dict[str, str] = {}
    for name, run in runs.items():
        with rounds.sparing(name, raised):
            timed[name] = chunks_in_turn(run, data, watches.get(name))
    with progress() as bars:
        bar = bars.add_task("measuring latencies, interleaved", total=1 + rounds.most)
        times = interleaved(
            timed,
            rounds,
            on_round=lambda done: bars.update(bar, completed=done),
            synchronise=synchronise,
            raised=raised,
        )
    stages = {name: _medians(watches[name].chunks[-len(times[name]) :]) for name in times if name in watches}
    for name in times:
        n = _cycle(runs[name])
        times[name] = [time_s / n for time_s in times[name]]
        if name in stages:
            stages[name] = {stage: time_s / n for stage, time_s in stages[name].items()}
    return Measured(times, stages, raised=raised)


def warm_up(execution: Execution, data: CalibrationData) -> None:
    """Make all graphs of an execution that compiles or captures some, and see that they compute what it does.

    Args:
        execution: any.
        data: observations; one is enough but where tokens that come out decide which graphs there are.

    Raises:
        UnsupportedPolicy: it cannot be compiled here, or acts otherwise then.
    """
    if execution.eager is None:
        return
    for one in data.ones() if isinstance(execution, Decoding) else [next(data.ones())]:
        try:
            found = sample(execution, one.batch, EpisodeNoise(one.noise_keys), one.draft)
        except Exception as error:  # a compiler raises what it likes
            sample(eagerly(execution), one.batch, EpisodeNoise(one.noise_keys), one.draft)
            told = f"{type(error).__name__}: {in_one_line(error)[:200]}"
            raise UnsupportedPolicy(f"it cannot be compiled or captured here: {told}") from error
        if isinstance(execution.policy, OpaquePolicy):  # it may have drawn numbers of its own
            continue
        expected = sample(eagerly(execution), one.batch, EpisodeNoise(one.noise_keys), one.draft)
        apart = float((found - expected).abs().mean())
        if not apart <= _ALIKE:
            raise UnsupportedPolicy(
                f"compiled or captured, its actions are {apart:.2g} from those that it takes otherwise, "
                f"where rounding makes {_ALIKE:g} at most (mean, normalised); leave it out, and report it"
            )


def asked(one: CalibrationData) -> dict[str, Any]:
    """One observation as the loop asks about it: nothing of the chunk before where nothing is known."""
    found = dict(one.raw)
    if PREVIOUS in found and not np.isfinite(found[PREVIOUS]).any():
        del found[PREVIOUS]
    return found if PREVIOUS not in found else {DELAY: np.zeros(len(one.noise_keys), np.int64)} | found


def chunks_in_turn(run: Chunk, data: CalibrationData, watch: Watch | None) -> Callable[[], None]:
    """Return what is timed of a run: a chunk, or those of a cycle, of one observation after the other."""
    if not isinstance(run, Session) or watch is None:
        return partial(_next, run, cycle(data.ones()))
    run = _telling(run, watch)
    following = cycle([_following(run, one) for one in data.ones()])

    def chunks() -> None:
        watch.start()
        for observations, key in next(following):
            slots = [copy.copy(slot) for slot in observations.get(SLOTS, [])]  # each time as it was then
            run.predict(observations | ({SLOTS: slots} if slots else {}), [key], watch)

    return chunks


def _telling(session: Session, watch: Watch) -> Session:
    """Return a session that tells when its language stage begins, if it has one.

    A compiled `encode` does not: it stays one stage.
    """
    policy = session.execution.policy
    if not has_language(policy):
        return session
    first = policy.language.blocks[0]

    def begin(*args: Any) -> Tensor:
        watch.begins_to_read()
        return first.fn(*args)

    twin: Any = policy.with_blocks(lambda block: replace(block, fn=begin) if block.id == first.id else block)
    twin = replace(session.execution, policy=twin)
    return Session(session.loaded, twin, session.task, session.chunking)


def _next(run: Any, observations: Iterator[CalibrationData]) -> None:
    run(next(observations))


def _cycle(run: Any) -> int:
    """Chunks of a run that are timed at once."""
    if isinstance(run, Session):
        return run.execution.cycle if isinstance(run.execution, Denoising) else 1
    return getattr(run, "cycle", 1)


def _following(session: Session, one: CalibrationData) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """What is asked of a session that has the chunks before, and the noise's key; one a chunk of a cycle."""
    if not session.execution.carries:
        return [(asked(one), one.noise_keys[0])]
    slot, (episode, *_) = Slot(), one.noise_keys[0]
    found: list[tuple[dict[str, Any], tuple[int, ...]]] = []
    session.predict(asked(one) | {SLOTS: [slot]}, [(episode, 0)])
    for n in range(_cycle(session)):
        follows = np.array([[n, session.spec.n_action_steps]])
        ask = asked(one) | {SLOTS: [copy.copy(slot)], FOLLOWED: follows}
        found.append((ask, (episode, n + 1)))
        session.predict(ask | {SLOTS: [slot]}, [(episode, n + 1)])
    return found


def _medians(chunks: list[dict[str, float]]) -> dict[str, float]:
    return {stage: float(np.median([chunk[stage] for chunk in chunks])) for stage in chunks[-1]}


def with_first(runs: Mapping[str, Session], data: CalibrationData, rounds: Rounds) -> Measured:
    """Return `chunk_latencies`; in the same rounds, chunks that follow none are timed where they differ."""
    carrying = {name: session for name, session in runs.items() if session.execution.carries}
    firsts = {f"{name}, first": partial(first_chunk, session) for name, session in carrying.items()}
    found = chunk_latencies({**runs, **firsts}, data, rounds)
    return replace(found, first_s={name: found.times_s.pop(f"{name}, first") for name in carrying})


def first_chunk(session: Session, one: CalibrationData) -> None:
    """Make a chunk that follows none."""
    session.predict(asked(one) | {SLOTS: [Slot()]}, one.noise_keys)


def measured_latencies(
    runs: Mapping[str, Session], data: CalibrationData, rounds: Rounds, notes: Notes = USUAL
) -> Measured:
    """Return `with_first`, read from the last time if the very same was measured before.

    Args:
        runs: name -> what to time.
        data: observations, one a round.
        rounds: how often.
        notes: where they are kept.
    """
    what = {
        "runs": {name: describe_run(session) for name, session in runs.items()},
        "observations": describe_observations(data),
        "rounds": asdict(rounds),
    }
    placement = next(iter(runs.values())).loaded.placement
    return Measured(**kept(what, placement, lambda: asdict(with_first(runs, data, rounds)), notes))


def kept(
    what: Mapping[str, Any],
    placement: Placement,
    measure: Callable[[], dict[str, Any]],
    notes: Notes = USUAL,
) -> dict[str, Any]:
    """Return what was measured of something the last time, else measure it and keep it.

    Versions and vivace's own code must be the same, too, and machine, threads, device and dtype as far as the
    notes say.

    Args:
        what: everything it depends on besides, as plain data.
        placement: where it runs.
        measure: measures, as plain data.
        notes: where it is kept.

    Raises:
        BadSetting: it is not known, and nothing is to be measured.
    """
    same: dict[str, Any] = {"versions": versions(), "source": source_digest()}
    where = {"machine": machine(placement), **same}
    file = notes.folder / f"{digest({**what, **(same if notes.of_any_machine else where)})[:16]}.json"
    if file.is_file() and not notes.refresh:
        found: dict[str, Any] = read_json(file, "measurement")["measured"]
        return found
    if notes.only_known:
        raise BadSetting(
            f"what all shares are to meet was not measured, or of another policy, plan or version of vivace: "
            f"nothing in {notes.folder} fits; run the command once with --scale.shard=0/n before"
        )
    measured = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**where, "measured": measured})
    return measured
