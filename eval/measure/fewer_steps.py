"""The honest baseline of a policy that denoises: as many steps as take no longer than the accelerated run."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vivace.accel.apply import calibrated
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.step_schedule import FLOWS, ask_steps, samplers_of
from vivace.accel.variant import Request, Variant
from vivace.eval.measure.latencies import Measured
from vivace.eval.measure.timing import shared
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.execution import Denoising, Execution
from vivace.policies.load import LoadedPolicy
from vivace.policies.sampling.clean_flow import CLEAN_FLOWS

Ratio = Callable[[Execution, int], float]
"""(execution, rounds) -> median latency over the accelerated run's, timed side by side in so many rounds."""

_COLOURS = {"fewer_steps": "#d9822b", "fewer_steps_dpm": "#c0392b"}
_CONFIRM = 4
"""How many times more rounds confirm a number of steps than look for it."""


_NAMES = {"dpmsolver++": "DPM-Solver++", "euler": "Euler"}
"""What samplers are called that are not in capitals."""


@dataclass(frozen=True)
class Rival:
    """A sampler at as many steps as the accelerated run gives it time for."""

    name: str
    sampler: str
    n_steps: int
    is_fewest: bool
    """The policy can be sampled with no fewer."""
    execution: Execution

    @property
    def variant(self) -> Variant:
        """Its row."""
        label = f"{_NAMES.get(self.sampler, self.sampler.upper())} {_steps(self.n_steps)}"
        return Variant(self.name, label, colour=_COLOURS[self.name])

    def labelled(self, ratio: float) -> Variant:
        """Its row once its latency is known over the accelerated run's."""
        slower = " (fewer there are not)" if ratio > 1 and self.is_fewest else ""
        return replace(self.variant, label=f"{self.variant.label}, {ratio:.2f}x the latency{slower}")


def samplers(execution: Denoising) -> dict[str, str]:
    """Row -> sampler a policy is compared with: of a flow Euler, of diffusion the two best known."""
    found = samplers_of(execution.policy)
    return dict(zip(_COLOURS, found[:1] if found in (FLOWS, CLEAN_FLOWS) else found, strict=False))


def find_rival(
    name: str,
    sampler: str,
    loaded: LoadedPolicy,
    plan: AccelerationPlan,
    data: CalibrationData,
    ratio: Ratio,
    repeats: int,
) -> Rival:
    """Find the most steps of a sampler that take no longer than the accelerated run; one if even that does.

    Args:
        name: of the row.
        sampler: which one.
        loaded: the policy.
        plan: the accelerated run's; what it saves exactly is saved here too, so that caching competes with
            steps alone.
        data: observations to calibrate on.
        ratio: compares latencies.
        repeats: rounds to look in.

    Raises:
        VivaceError: the policy has no such sampler, with as few steps or at all.
    """
    exact: list[Request] = [(one.kind, one.told()) for one in plan.techniques if one.is_exact]

    def made(n_steps: int, observations: CalibrationData) -> Execution:
        wanted = [ask_steps(sampler, n_steps), *exact]
        return calibrated(loaded.staged, loaded.fingerprint, observations, wanted)[1]

    one = next(data.ones())  # where steps lie does not matter to how long they take
    counts = accepted(loaded.staged, sampler)
    found = most_steps(counts, lambda n: ratio(made(n, one), repeats))
    while found > counts[0] and ratio(made(found, one), _CONFIRM * repeats) > 1:
        found = counts[counts.index(found) - 1]
    return Rival(name, sampler, found, found == counts[0], made(found, data))


def accepted(policy: Any, sampler: str) -> list[int]:
    """Numbers of steps, up to the policy's own, of a sampler it takes; raises `BadSetting` if none."""
    found, why = [], ""
    for n_steps in range(1, len(policy.sampler) + 1):
        try:
            policy.resample(sampler, n_steps)
            found.append(n_steps)
        except VivaceError as error:
            why = str(error)
    if not found:
        raise BadSetting(f"policy {policy.spec.type!r} takes no number of {sampler} steps: {why}")
    return found


def most_steps(counts: Sequence[int], ratio: Callable[[int], float]) -> int:
    """Return the most steps whose latency is no longer than another's, the fewest if all take longer.

    Latency grows evenly with the steps, above what is spent but once, so the line between two known
    numbers of steps says where to look next.

    Args:
        counts: numbers of steps to choose from, ascending.
        ratio: steps -> latency over the other's.
    """
    low, high = 0, len(counts) - 1
    below = ratio(counts[low])
    if below > 1 or low == high:
        return counts[low]
    above = ratio(counts[high])
    if above <= 1:
        return counts[high]
    while high - low > 1:
        share = (1 - below) / (above - below)
        aim = counts[low] + share * (counts[high] - counts[low])
        middle = min(max(bisect_right(counts, aim) - 1, low + 1), high - 1)
        found = ratio(counts[middle])
        if found <= 1:
            low, below = middle, found
        else:
            high, above = middle, found
    return counts[low]


def latency_ratio(measured: Measured, name: str, other: str) -> float:
    """Median latency of a run over another's, in the rounds they share."""
    first, second = shared(measured.times_s[name], measured.times_s[other])
    return float(np.median(first) / np.median(second))


def _steps(n_steps: int) -> str:
    return f"{n_steps} step" if n_steps == 1 else f"{n_steps} steps"
