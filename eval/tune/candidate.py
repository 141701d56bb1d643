"""A candidate is a way of running a policy that might win; a trial is what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from vivace.accel.registry import techniques
from vivace.accel.variant import Request
from vivace.eval.identity import digest
from vivace.policies.backports import StrEnum
from vivace.policies.errors import BadSetting
from vivace.policies.plain_data import plain
from vivace.policies.spec import ChunkExecution


class Origin(StrEnum):
    """Why a candidate is looked at. All but the searched ones are looked at first."""

    TRAINED = "as trained"
    EXACT = "exact"
    """What removes work at no error, and nothing else."""
    BASELINE = "baseline"
    """What a technique has to beat: fewer steps, a warm start, a uniform interval, torch.compile."""
    FORMER = "former"
    """The plan that lies beside the checkpoint: what somebody made by hand, or an earlier search."""
    DEFAULT = "default"
    """A technique as it is where nobody gives it options, or a row it wants in tables."""
    SEARCH = "search"
    """Found by the search."""

    @property
    def is_rival(self) -> bool:
        """Whether it is there to be beaten: it is never dropped before it was timed."""
        return self in (Origin.TRAINED, Origin.EXACT, Origin.BASELINE, Origin.FORMER)


@dataclass(frozen=True)
class Candidate:
    """Techniques with their options, and how chunks are executed; what it is called is no part of it."""

    requests: tuple[Request, ...] = ()
    """Techniques to calibrate, in any order; none: as trained."""
    execution: ChunkExecution = ChunkExecution()
    origin: Origin = field(default=Origin.SEARCH, compare=False)
    label: str = field(default="", compare=False)
    """What a person reads."""

    @cached_property
    def key(self) -> str:
        """Hash of what it is, the same in every process: its name in files."""
        requests = sorted((kind, plain(options)) for kind, options in self.requests)
        return digest([requests, plain(self.execution)])[:12]

    @property
    def is_drawn(self) -> bool:
        """Whether it is one of the eighth drawn by lot, which are looked at whole however they look.

        Near actions need not be what succeeds: a race has to see some that no rule has picked.
        """
        return self.key < "2"  # of sixteen digits that a hash may begin with

    @property
    def is_alone(self) -> bool:
        """Whether anybody could have named it without a search."""
        return self.origin is not Origin.SEARCH

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of its techniques."""
        return tuple(kind for kind, _ in self.requests)

    @cached_property
    def same_work(self) -> tuple[Request, ...]:
        """Of its techniques those that compute the same faster, of which counted work does not know."""
        known = techniques()
        return tuple(
            (kind, options)
            for kind, options in self.requests
            if kind in known and not known[kind].saves_flops
        )

    @property
    def starts_late(self) -> bool:
        """Whether its first chunk takes a minute or more."""
        known = techniques()
        return any(kind in known and known[kind].starts_late for kind in self.kinds)

    def computed_as(self, other: "Candidate", label: str = "") -> "Candidate":
        """Return it with what computes the same faster in another one."""
        requests = (*self.requests, *other.same_work)
        return replace(self, requests=requests, origin=Origin.SEARCH, label=label)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` restores it."""
        return {
            "requests": [[kind, plain(options)] for kind, options in self.requests],
            "execution": plain(self.execution),
            "origin": self.origin.value,
            "label": self.label,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Candidate":
        """Restore a candidate from plain data."""
        return cls(
            requests=tuple((kind, dict(options)) for kind, options in data["requests"]),
            execution=ChunkExecution(**data["execution"]),
            origin=Origin(data["origin"]),
            label=data["label"],
        )


class Status(StrEnum):
    """How far a candidate came."""

    COUNTED = "counted"
    """Its work and its action error are known."""
    TIMED = "timed"
    """Its latency is known too."""
    RACED = "raced"
    """It ran episodes, and was not dropped."""
    CONFIRMED = "confirmed"
    """It ran episodes that no choice was made on."""
    DROPPED = "dropped"
    """It was given up; `stage` and `reason` say where and why."""
    FAILED = "failed"
    """Something was raised; `stage` and `reason` say where and what."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is known of one candidate. It grows stage by stage; the newest of a key counts."""

    candidate: Candidate
    status: Status
    stage: Status | None = None
    """Of one that was dropped or failed: what it was to become."""
    reason: str = ""
    """Why it was dropped, or what it failed of."""
    flops: int | None = None
    """Work of a chunk; None where it cannot be counted."""
    passes: float | None = None
    """Passes that wait for each other: of two that compute as much the one of fewer is faster."""
    action_error: float | None = None
    """Mean absolute difference of normalised actions from those as trained, on observations that were not
    fitted to."""
    first_error: float | None = None
    """The same on the first few of them, by which a trial is given up that has no chance."""
    follows: bool = False
    """Chunks make use of those before: its error is that of the first ones of episodes, which do not, so that
    only a world can judge it."""
    latencies_s: tuple[float, ...] = ()
    """Of whole chunks on this device [s], in the order of the rounds."""
    raced: Mapping[int, bool] = field(default_factory=dict)
    """Seed -> success, of the episodes that choices are made on."""
    confirmed: Mapping[int, bool] = field(default_factory=dict)
    """Seed -> success, of episodes that no choice is made on."""

    @property
    def key(self) -> str:
        """Of its candidate."""
        return self.candidate.key

    @property
    def is_alive(self) -> bool:
        """Whether it may still win."""
        return self.status not in (Status.DROPPED, Status.FAILED)

    def became(self, status: Status, **known: Any) -> "Trial":
        """Return it one stage further."""
        return replace(self, status=status, **known)

    def dropped(self, stage: Status, reason: str, **known: Any) -> "Trial":
        """Return it given up before it became what a stage makes of it."""
        return replace(self, status=Status.DROPPED, stage=stage, reason=reason, **known)

    def failed(self, stage: Status, reason: str, **known: Any) -> "Trial":
        """Return it with what was raised before it became what a stage makes of it."""
        return replace(self, status=Status.FAILED, stage=stage, reason=reason, **known)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` restores it."""
        return {
            **{name: plain(getattr(self, name)) for name in _STORED},
            "candidate": self.candidate.to_json(),
            "raced": [[seed, success] for seed, success in self.raced.items()],
            "confirmed": [[seed, success] for seed, success in self.confirmed.items()],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Trial":
        """Restore a trial from plain data.

        Raises:
            BadSetting: fields are missing or unknown, or hold what they cannot.
        """
        if not isinstance(data, dict) or set(data) != set(_STORED):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise BadSetting(
                f"a trial has {found}; needed: {', '.join(_STORED)}; it is another program's or version's, "
                "choose another folder"
            )
        try:
            return cls(
                **data
                | {
                    "candidate": Candidate.from_json(data["candidate"]),
                    "status": Status(data["status"]),
                    "stage": None if data["stage"] is None else Status(data["stage"]),
                    "latencies_s": tuple(data["latencies_s"]),
                    "raced": dict(data["raced"]),
                    "confirmed": dict(data["confirmed"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadSetting(f"a trial cannot be read ({error}); choose another folder") from error


_STORED = tuple(f.name for f in fields(Trial))
