"""A profile: what was measured on a machine, and what it says of plans that were not measured there.

A chunk takes the sum over its parts of calls times the time of a call. That of a block is known at the sizes
at which it was called when it was measured, and goes in straight lines between them by counted work; below
the smallest and above the largest it goes as the work does. What computes the same work faster, such as fewer
bits, has times of its own.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from vivace.accel.registry import techniques
from vivace.eval.output import read_json, write_json
from vivace.eval.profile.ledger import Part
from vivace.eval.terminal import milliseconds
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy
from vivace.policies.placement import dtype_name
from vivace.policies.spec import Fingerprint

VERSION = 1
_AGAIN = "measure it again on that machine: vivace bench --policy.path=… --bench.profile=FILE"


class Unpredictable(VivaceError):
    """A profile does not say how long a plan takes; the text says why."""


@dataclass(frozen=True)
class Check:
    """A plan that the profile was not made of, predicted and measured on the same machine."""

    label: str
    predicted_s: float
    """Median of a chunk as predicted [s]."""
    measured_s: float
    """And as measured [s]."""

    @property
    def error(self) -> float:
        """How much longer it takes than predicted, as a share; negative: shorter."""
        return self.measured_s / self.predicted_s - 1


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was measured of one policy on one machine."""

    machine: Mapping[str, Any]
    """As of `eval.machine.machine`: processor, cores, threads, device, dtype."""
    versions: Mapping[str, str]
    commit: str | None
    fingerprint: Mapping[str, Any]
    """Of the policy."""
    continues: bool
    """Whether chunks were drawn towards those before (mode rtc), which takes longer."""
    ways: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
    """What computes the same work faster (`way_of`) -> part -> (work of a call, its time [s]), ascending."""
    spread: Sequence[float]
    """Times of one plan over their median, ascending: how a chunk's time varies on that machine."""
    checks: Sequence[Check]
    first_over_later: Mapping[str, float] = field(default_factory=dict)
    """Label of a plan whose chunks make use of those before -> time of a first over that of later ones."""
    memory_mb: float = 0.0
    """Most memory that the measuring process had [MB], the device's where there is one."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Label of a plan that could not be measured -> why."""

    @property
    def margin(self) -> float:
        """By what share predictions are lengthened to be safe: the largest by which one was too short."""
        return max([0.0, *(check.error for check in self.checks)])

    @property
    def told(self) -> str:
        """For which machine latencies are predicted, and how well, in words."""
        errors = [check.error for check in self.checks]
        cpu, device = self.machine["cpu"], self.machine["device"]
        where = f"{cpu}{'' if device == 'cpu' else f', {device}'}, {self.machine['threads']} threads"
        if not errors:
            return f"latencies are predicted for {where}; how well was not measured"
        return (
            f"latencies are predicted for {where}: of {len(errors)} plans measured there that it was not "
            f"made of they were off by {np.median(np.abs(errors)):.0%} (median; {min(errors):+.0%} … "
            f"{max(errors):+.0%}), and the budget is kept with {self.margin:.0%} to spare"
        )

    def chunk_s(self, way: str, parts: Iterable[Part]) -> float:
        """Predict the median time of a chunk [s].

        Args:
            way: of the plan, as of `way_of`.
            parts: what its chunk is made of.

        Raises:
            Unpredictable: the profile lacks something of it.
        """
        if way not in self.ways:
            known = ", ".join(_way_told(one) or "none" for one in self.ways)
            raise Unpredictable(
                f"the profile has no times of {_way_told(way) or 'no technique'} (of {known})"
            )
        known_parts = self.ways[way]
        total_s = 0.0
        for part in parts:
            if part.name not in known_parts:
                raise Unpredictable(f"the profile has no time of {part.name}")
            total_s += part.calls * call_s(known_parts[part.name], part.flops)
        return total_s

    def times_s(self, median_s: float) -> list[float]:
        """Times of chunks [s] of this median, as they vary on that machine."""
        return [round(median_s * ratio, 9) for ratio in self.spread]

    def check(self, loaded: LoadedPolicy, continues: bool) -> None:
        """Raise `BadSetting` unless it is of this policy, run so."""
        names = {one.name for one in fields(Fingerprint) if one.name != "former_config"}
        found = {name: value for name, value in self.fingerprint.items() if name in names}
        made_for = Fingerprint(**found | {"blocks": tuple(found["blocks"])})
        if differing := loaded.fingerprint.differs(made_for):
            raise BadSetting(
                f"budget.device is a profile of another policy (it differs in "
                f"{', '.join(differing)}); {_AGAIN}"
            )
        dtype = dtype_name(loaded.placement.dtype)
        if self.machine["dtype"] != dtype:
            raise BadSetting(
                f"budget.device is a profile in {self.machine['dtype']}, the policy computes in {dtype}; "
                f"give --policy.dtype={self.machine['dtype']}"
            )
        if self.continues != continues:
            wanted = "--loop.mode=rtc" if continues else "no --loop.mode=rtc"
            raise BadSetting(
                "budget.device is a profile of chunks that "
                f"{'continue' if self.continues else 'do not continue'} those before, and this loop's "
                f"{'do' if continues else 'do not'}; measure it with {wanted}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` restores it."""
        return {"kind": "profile", "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any, path: Path) -> "Profile":
        """Restore a profile.

        Raises:
            BadSetting: it is none, of another version, or broken.
        """
        if not isinstance(data, dict) or data.get("kind") != "profile":
            raise BadSetting(f"{path} is not a profile; {_AGAIN}")
        if data.get("version") != VERSION:
            raise BadSetting(
                f"{path} is a profile of version {data.get('version')}, this vivace reads {VERSION}; {_AGAIN}"
            )
        said = {name: value for name, value in data.items() if name not in ("kind", "version")}
        try:
            ways = {
                way: {
                    part: [(int(work), float(time_s)) for work, time_s in points]
                    for part, points in parts.items()
                }
                for way, parts in said["ways"].items()
            }
            checks = [Check(**one) for one in said["checks"]]
            profile = cls(**said | {"ways": ways, "checks": checks})
            points = [point for parts in ways.values() for some in parts.values() for point in some]
            positive = [
                *profile.spread,
                *(time_s for one in checks for time_s in (one.predicted_s, one.measured_s)),
            ]
            is_whole = all(0 <= n < math.inf for point in points for n in point) and bool(points)
            is_whole &= all(0 < number < math.inf for number in positive) and len(profile.spread) > 0
            is_whole &= all(
                json.loads(way) is not None and all(parts.values()) for way, parts in ways.items()
            )
            is_whole &= {"cpu", "device", "threads", "dtype"} <= set(profile.machine)
            is_whole &= {"policy_type", "config", "weights", "processors", "blocks"} <= set(
                profile.fingerprint
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadSetting(
                f"{path} is a broken profile ({type(error).__name__}: {error}); {_AGAIN}"
            ) from error
        if not is_whole:
            raise BadSetting(f"{path} is a broken profile (numbers or names are missing in it); {_AGAIN}")
        return profile

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read one; raises `BadSetting` as of `from_json`."""
        return cls.from_json(read_json(path, "profile"), path)


def call_s(points: Sequence[tuple[int, float]], flops: float) -> float:
    """Time of a call [s] that does so much work.

    Args:
        points: (work, time [s]) of calls that were measured, ascending; at least one.
        flops: its work.
    """
    works, times = zip(*points, strict=True)
    if len(points) == 1 and works[0] == 0:
        return float(times[0])
    if flops > works[-1]:
        return float(times[-1]) * flops / works[-1] if works[-1] else float(times[-1])
    if works[0] > 0:
        works, times = (0, *works), (0.0, *times)
    return float(np.interp(flops, works, times))


def way_of(execution: Execution) -> str:
    """Techniques of an execution that compute the same work faster, and their settings, as a line of JSON."""
    plan = execution.plan
    if plan is None:
        return "[]"
    told = [
        [technique.kind, technique.told()]
        for technique in plan.techniques
        if not techniques()[technique.kind].saves_flops
    ]
    return json.dumps(told, sort_keys=True, default=str)


def _way_told(way: str) -> str:
    """The same for a person."""
    parts = [
        f"{kind} ({', '.join(f'{name} {value}' for name, value in options.items())})"
        for kind, options in json.loads(way)
    ]
    return " and ".join(parts).replace(" ()", "")


def in_words(check: Check) -> tuple[str, str, str, str]:
    """A row of a table: label, predicted, measured, error."""
    predicted, measured = milliseconds(check.predicted_s, 1), milliseconds(check.measured_s, 1)
    return check.label, predicted, measured, f"{check.error:+.1%}"
