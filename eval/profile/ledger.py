"""What a chunk is made of: calls of blocks, how much each computes, and what is left of every stage."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.latencies import chunks_in_turn
from vivace.policies.block import Block
from vivace.policies.execution import Decoding, Denoising, Execution
from vivace.policies.session import Session

Key = tuple[str, str, tuple[Any, ...]]
"""Stage, block (empty: what is left of the stage), and shapes of what the block is called with."""


@dataclass(frozen=True)
class Part:
    """Calls of a chunk that all do the same work."""

    stage: str
    """One of `policies.stopwatch.STAGES`."""
    block: str
    """Id of a block; empty: what is left of the stage, of which every step or pass is a call."""
    flops: int
    """Work of a call; 0 where it is element-wise, or moves data."""
    calls: float
    """In a chunk: the mean of those of a cycle, or of several observations."""

    @property
    def name(self) -> str:
        """Its name in a profile, such as "denoise/action.3.mlp"."""
        return f"{self.stage}/{self.block}" if self.block else self.stage


@dataclass
class Tally:
    """What was seen of one key."""

    calls: float = 0
    time_s: float = 0.0
    flops: int = 0

    def add(self, time_s: float, flops: int) -> None:
        """One more call."""
        self.calls, self.time_s, self.flops = self.calls + 1, self.time_s + time_s, self.flops + flops


@dataclass
class Meter:
    """Times, or counts, the blocks of the stages of chunks; stands where a `StageWatch` does."""

    synchronise: Callable[[], None] = lambda: None
    """Waits for the device."""
    counter: FlopCounterMode | None = None
    """Counts all that is computed; None: nothing is counted."""
    now: Callable[[], float] = time.perf_counter
    chunks: list[dict[Key, Tally]] = field(default_factory=list)
    """What was seen, one a call of `start`."""
    _open: list[tuple[str, tuple[Any, ...], float, int]] = field(default_factory=list)
    """Blocks called in the stage that is not over yet."""
    _last: str = ""
    _last_s: float = 0.0
    _last_flops: int = 0

    def start(self) -> None:
        """Begin a chunk, or those of a cycle."""
        self._open.clear()
        self.chunks.append({})
        self._last, self._last_s, self._last_flops = "", self.now(), self._flops()

    def __call__(self, stage: str) -> None:
        """End a stage; the blocks called since the last one were its."""
        self.synchronise()
        time_s, flops = self.now() - self._last_s, self._flops() - self._last_flops
        if self._last == "vision":  # then what is left of encode is language
            stage = "language"
        for block, sizes, block_s, work in self._open:
            self.chunks[-1].setdefault((stage, block, sizes), Tally()).add(block_s, work)
            time_s, flops = time_s - block_s, flops - work
        self.chunks[-1].setdefault((stage, "", ()), Tally()).add(max(0.0, time_s), flops)
        self._open.clear()
        self._last, self._last_s, self._last_flops = stage, self.now(), self._flops()

    def begins_to_read(self) -> None:
        """Told whenever the first language layer begins: what `encode` did before it is vision."""
        if self._last == "prepare":
            self("vision")

    def metered(self, session: Session) -> Session:
        """Return a session whose blocks are told of."""
        session = session.eagerly()
        policy: Any = session.execution.policy.with_blocks(self._block)
        execution: Any = replace(session.execution, policy=policy)
        return Session(session.loaded, execution, session.task, session.chunking)

    def _block(self, block: Block) -> Block:
        def fn(*args: Any) -> Tensor:
            self.synchronise()
            began_s, before = self.now(), self._flops()
            out = block.fn(*args)
            self.synchronise()
            sizes = tuple(tuple(one.shape) for one in args if isinstance(one, Tensor))
            self._open.append((block.id, sizes, self.now() - began_s, self._flops() - before))
            return out

        return replace(block, fn=fn)

    def _flops(self) -> int:
        return 0 if self.counter is None else int(self.counter.get_total_flops())


def counted(session: Session, data: CalibrationData) -> dict[Key, Part]:
    """Count the calls of a chunk, and the work of each: of one that follows others, where chunks do.

    It does not matter on which machine. Where a policy writes tokens it depends on the observation how many
    passes there are: there it is the mean over all.
    """
    ones = list(data.ones())
    found: dict[Key, Tally] = {}
    observations = ones if isinstance(session.execution, Decoding) else ones[:1]
    for one in observations:
        with _all_counted() as counter:
            meter = Meter(counter=counter)
            run = chunks_in_turn(meter.metered(session), one, meter)
            run()
        for key, tally in meter.chunks[-1].items():
            so_far = found.setdefault(key, Tally())
            so_far.calls += tally.calls
            so_far.flops += tally.flops
    n = len(observations) * cycle_of(session.execution)
    passes = steps_of(session.execution, {key: tally.calls / n for key, tally in found.items()})
    parts = {}
    for key, tally in found.items():
        stage, block, _ = key
        calls = tally.calls / n if block else passes.get(stage, tally.calls / n)
        parts[key] = Part(stage, block, round(tally.flops / n / calls) if calls else 0, calls)
    return parts


def timed(chunks: list[dict[Key, Tally]], parts: Mapping[Key, Part], cycle: int) -> dict[Key, list[float]]:
    """Return how long a call of each part took [s], in the order of the rounds in which there was one.

    Args:
        chunks: what a `Meter` saw, a round each.
        parts: as `counted` gave them; what was called at sizes that are not among them is left out.
        cycle: chunks in a round.
    """
    found: dict[Key, list[float]] = {}
    for chunk in chunks:
        for key, tally in chunk.items():
            if key in parts:
                calls = tally.calls if key[1] else parts[key].calls * cycle
                found.setdefault(key, []).append(tally.time_s / max(calls, 1e-9))
    return found


def cycle_of(execution: Execution) -> int:
    """Chunks after which its work repeats."""
    return execution.cycle if isinstance(execution, Denoising) else 1


def steps_of(execution: Execution, calls: Mapping[Key, float]) -> dict[str, float]:
    """Return how often what is left of a stage is gone through in a chunk, where that is not once."""
    match execution:
        case Denoising():
            return {"denoise": max(1, len(execution.sampler) - execution.first)}
        case Decoding():
            passes = [n for (stage, block, _), n in calls.items() if stage == "decode" and block]
            return {"decode": max(1.0, *passes)} if passes else {}


@contextmanager
def _all_counted() -> Iterator[FlopCounterMode]:
    """Count in a form that is made of operations that are known: no fused attention."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
