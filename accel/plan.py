"""The acceleration plan: `acceleration.json`, saved beside `config.json` and `model.safetensors`.

A technique with tensors of its own keeps them in `acceleration.safetensors` beside the plan, under its kind.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vivace.accel.technique import Seam, Technique, technique_class
from vivace.policies.errors import PlanMismatch, VivaceError
from vivace.policies.types import Fingerprint

VERSION = 1
FILE_NAME = "acceleration.json"
TENSORS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class AccelerationPlan:
    """Ordered techniques for one policy, and what was measured of them."""

    fingerprint: Fingerprint
    techniques: tuple[Technique, ...] = ()
    measurements: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put the techniques in the order of their seams; two on one seam are an error, except weights."""
        ordered = tuple(sorted(self.techniques, key=lambda technique: technique.seam))
        for first, second in zip(ordered, ordered[1:], strict=False):
            if first.seam == second.seam != Seam.WEIGHTS:
                raise PlanMismatch(
                    f"{first.kind} and {second.kind} both work on the "
                    f"{first.seam.name.lower()} seam; keep one"
                )
        object.__setattr__(self, "techniques", ordered)

    def check(self, found: Fingerprint) -> None:
        """Raise `PlanMismatch` if the plan was made for another policy."""
        for name in ("policy_type", "config", "weights", "blocks"):
            needed, got = getattr(self.fingerprint, name), getattr(found, name)
            if needed != got:
                raise PlanMismatch(
                    f"the plan was calibrated for {self.fingerprint}, but this policy is {found}: "
                    f"its {name.replace('_', ' ')} differ; recalibrate: vivace calibrate --policy.path=…"
                )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` restores it."""
        return {
            "version": VERSION,
            "fingerprint": asdict(self.fingerprint),
            "techniques": [_settings(technique) for technique in self.techniques],
            "measurements": dict(self.measurements),
        }

    @classmethod
    def from_json(cls, data: Any, tensors: Mapping[str, Tensor] | None = None) -> "AccelerationPlan":
        """Restore a plan from plain data and its tensors, by kind and name.

        Raises:
            PlanMismatch: the data is malformed or of another version.
        """
        try:
            if data["version"] != VERSION:
                raise PlanMismatch(
                    f"plan has version {data['version']}, this vivace reads {VERSION}; recalibrate"
                )
            return cls(
                Fingerprint(**{k: _tuples(v) for k, v in data["fingerprint"].items()}),
                tuple(_technique(entry, tensors or {}) for entry in data["techniques"]),
                data.get("measurements", {}),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PlanMismatch(f"plan is malformed: {type(error).__name__}: {error}; recalibrate") from error

    def save(self, path: Path) -> None:
        """Write the plan, and its tensors if it has any; `path` is the file or the checkpoint folder."""
        target = path / FILE_NAME if path.is_dir() else path
        tensors = {
            f"{technique.kind}.{name}": tensor
            for technique in self.techniques
            for name, tensor in getattr(technique, "tensors", {}).items()
        }
        if tensors:
            beside = target.with_suffix(TENSORS_SUFFIX)
            unfinished = beside.with_name(beside.name + ".partial")
            save_file(tensors, unfinished)
            os.replace(unfinished, beside)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        os.replace(partial, target)

    @classmethod
    def load(cls, path: Path) -> "AccelerationPlan":
        """Read a plan from its file or checkpoint folder; raises `PlanMismatch`."""
        target = path / FILE_NAME if path.is_dir() else path
        if not target.is_file():
            raise PlanMismatch(f"no plan at {target}; make one: vivace calibrate --policy.path=…")
        try:
            return cls.from_json(json.loads(target.read_text()), _read_tensors(target))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PlanMismatch(f"{target} is not JSON ({error}); recalibrate") from error
        except VivaceError as error:
            raise type(error)(f"{target}: {error}") from error


def _settings(technique: Technique) -> dict[str, Any]:
    """A technique as plain data, its tensors left out."""
    settings = {name: value for name, value in vars(technique).items() if name != "tensors"}
    return {"kind": technique.kind, **settings}


def _technique(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> Technique:
    settings = {key: _tuples(value) for key, value in entry.items() if key != "kind"}
    prefix = entry["kind"] + "."
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return technique_class(entry["kind"])(**settings, **({"tensors": own} if own else {}))


def _read_tensors(plan: Path) -> dict[str, Tensor]:
    file = plan.with_suffix(TENSORS_SUFFIX)
    try:
        return load_file(file) if file.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise PlanMismatch(f"{file} is truncated or not safetensors ({error}); recalibrate") from error


def _tuples(value: Any) -> Any:
    """Lists become tuples, at any depth, so that a restored plan equals the saved one."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_tuples(item) for item in value)
    return value
