"""The acceleration plan: `acceleration.json`, saved beside `config.json` and `model.safetensors`.

A technique with tensors of its own keeps them in `acceleration.safetensors` beside the plan, under its kind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vivace.accel.registry import technique_class, today
from vivace.accel.technique import Technique
from vivace.policies.errors import BadSetting, PlanMismatch, VivaceError
from vivace.policies.files import replacing
from vivace.policies.plain_data import build, check_plain, check_types, plain, read_json
from vivace.policies.spec import ChunkExecution, Fingerprint

VERSION = 1
_AGAIN = "recalibrate: vivace calibrate --policy.path=…"
FILE_NAME = "acceleration.json"
TENSORS_SUFFIX = ".safetensors"
_CALLED = {
    "policy_type": "policy type",
    "config": "config",
    "weights": "weights",
    "processors": "processors (statistics of observations and actions among them)",
    "blocks": "blocks",
}
"""Fields of a fingerprint -> what a message calls them."""


@dataclass(frozen=True)
class AccelerationPlan:
    """Ordered techniques for one policy, and what was measured of them."""

    fingerprint: Fingerprint
    techniques: tuple[Technique, ...] = ()
    measurements: Mapping[str, Any] = field(default_factory=dict)
    execution: ChunkExecution = ChunkExecution()
    """How its chunks are executed, where it is not as the policy has it."""

    def __post_init__(self) -> None:
        """Put the techniques in the order of their seams; two on one seam are an error, unless it holds many.

        Raises:
            PlanMismatch: two techniques do not go together.
            BadSetting: something has another type than its field's.
        """
        check_types(self.fingerprint, "fingerprint")
        object.__setattr__(self, "fingerprint", replace(self.fingerprint, former_config=""))
        for technique in self.techniques:
            check_types(technique, technique.kind)
        check_plain(self.measurements, "measurements")
        check_types(self.execution, "execution")
        ordered = tuple(sorted(self.techniques, key=lambda technique: (technique.seam, technique.kind)))
        for first, second in zip(ordered, ordered[1:], strict=False):
            if first.kind == second.kind or (first.seam == second.seam and not first.seam.holds_many):
                raise PlanMismatch(
                    f"{first.kind} and {second.kind} both work on the "
                    f"{first.seam.name.lower()} seam; keep one"
                )
        object.__setattr__(self, "techniques", ordered)

    @property
    def identity(self) -> list[Any]:
        """What it does, as plain data: its techniques, and how its chunks are executed."""
        return [[_settings(technique) for technique in self.techniques], self.execution.chosen]

    def told(self) -> list[dict[str, Any]]:
        """What it does, for results and pages: what each technique tells, and how its chunks are executed."""
        found = [{"kind": technique.kind, **technique.told()} for technique in self.techniques]
        return [*found, *([{"kind": "chunks", **chosen}] if (chosen := self.execution.chosen) else [])]

    def executed(self, execution: ChunkExecution) -> "AccelerationPlan":
        """Return it for chunks that are executed as somebody says; of what is not said the plan's stays."""
        return replace(self, execution=execution.over(self.execution))

    def check(self, found: Fingerprint) -> None:
        """Raise `PlanMismatch` if the plan was made for another policy."""
        other = found.differs(self.fingerprint)
        if other:
            raise PlanMismatch(
                f"the plan was calibrated for {self.fingerprint}, but this policy is {found}: "
                f"its {_CALLED[other[0]]} differ; recalibrate: vivace calibrate --policy.path=…"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` restores it."""
        return {
            "version": VERSION,
            "fingerprint": plain(self.fingerprint),
            "techniques": [_settings(technique) for technique in self.techniques],
            **({"execution": told} if (told := self.execution.chosen) else {}),
            "measurements": dict(self.measurements),
        }

    @classmethod
    def from_json(cls, data: Any, tensors: Mapping[str, Tensor] | None = None) -> "AccelerationPlan":
        """Restore a plan from plain data and its tensors, by kind and name.

        Raises:
            PlanMismatch: the data is malformed or of another version.
        """
        try:
            check_plain(data, "plan")
            if isinstance(data, Mapping) and data.get("version") != VERSION:
                raise PlanMismatch(
                    f"plan has version {data.get('version')}, this vivace reads {VERSION}; {_AGAIN}"
                )
            stored = build(_Stored, "plan", data)
            fingerprint = build(Fingerprint, "fingerprint", stored.fingerprint)
            known = dict(tensors or {})
            techniques = tuple(_technique(entry, known) for entry in stored.techniques)
            if known:
                raise BadSetting(f"tensor {min(known)!r} belongs to no technique of the plan")
            return cls(fingerprint, techniques, stored.measurements, stored.execution)
        except BadSetting as error:
            raise PlanMismatch(f"plan is malformed: {error}; {_AGAIN}") from error

    def save(self, path: Path) -> None:
        """Write the plan, and its tensors if it has any; `path` is the file or the checkpoint folder."""
        target = path / FILE_NAME if path.is_dir() else path
        tensors = {
            f"{technique.kind}.{name}": tensor
            for technique in self.techniques
            for name, tensor in getattr(technique, "tensors", {}).items()
        }
        beside = target.with_suffix(TENSORS_SUFFIX)
        if tensors:
            with replacing(beside) as file:
                save_file(tensors, file)
        else:
            beside.unlink(missing_ok=True)  # those of an earlier plan would be taken for this one's
        with replacing(target) as file:
            file.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "AccelerationPlan":
        """Read a plan from its file or checkpoint folder; raises `PlanMismatch`."""
        target = path / FILE_NAME if path.is_dir() else path
        if not target.is_file():
            raise PlanMismatch(f"no plan at {target}; make one: vivace calibrate --policy.path=…")
        try:
            data = read_json(target)
        except BadSetting as error:
            raise PlanMismatch(f"{error}; {_AGAIN}") from error
        try:
            return cls.from_json(data, _read_tensors(target))
        except VivaceError as error:
            raise type(error)(f"{target}: {error}") from error


@dataclass(frozen=True)
class _Stored:
    """What the file holds."""

    version: int
    fingerprint: dict[str, Any]
    techniques: tuple[dict[str, Any], ...]
    measurements: dict[str, Any] = field(default_factory=dict)
    execution: ChunkExecution = ChunkExecution()


def _settings(technique: Technique) -> dict[str, Any]:
    """A technique as plain data, its tensors left out."""
    settings = {name: value for name, value in vars(technique).items() if name != "tensors"}
    return {"kind": technique.kind, **settings}


def _technique(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Technique:
    """Restore a technique; its tensors are taken out of `tensors`."""
    kind = entry.get("kind")
    if not isinstance(kind, str) or "tensors" in entry:
        raise BadSetting(
            f"a technique has kind {kind!r} and fields {', '.join(entry)}; needed is a known kind"
        )
    prefix = kind + "."
    own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    settings = {key: value for key, value in entry.items() if key != "kind"}
    kind = today(kind)
    return build(technique_class(kind), kind, settings | ({"tensors": own} if own else {}))


def _read_tensors(plan: Path) -> dict[str, Tensor]:
    file = plan.with_suffix(TENSORS_SUFFIX)
    try:
        return load_file(file) if file.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise PlanMismatch(f"{file} is truncated or not safetensors ({error}); {_AGAIN}") from error
