"""Limits of a robot's actions, read from a YAML file or from the robot's URDF.

The YAML names every dimension of the action once; what a dimension lacks does not apply to it:

    urdf: arm.urdf            # optional: limits of the joints of that name, overridden below
    degrees: true             # optional: actions are in degrees, the URDF in radians
    limits:
      shoulder_pan: {low: -1.9, high: 1.9, step: 0.1, velocity: 2.0, acceleration: 8.0}
      gripper: {}

`step` is per tick, `velocity` per second, `acceleration` per second squared, in the units of the action.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.deploy.guard import Limits
from vivace.policies.errors import BadSetting
from vivace.policies.types import ActionKind

FIELDS = {
    "low": "low",
    "high": "high",
    "step": "max_step",
    "velocity": "max_velocity",
    "acceleration": "max_acceleration",
}
"""Name in the file -> field of `Limits`."""
_NONE = {"low": -math.inf, "high": math.inf, "step": math.inf, "velocity": math.inf, "acceleration": math.inf}
_SUFFIX = ".pos"
"""lerobot's names of joint targets end so; a file may leave it out."""


def load_limits(path: str | Path, names: Sequence[str], kinds: Sequence[ActionKind]) -> Limits:
    """Read limits for actions whose dimensions have these names.

    Args:
        path: a .yaml or .yml file, or a .urdf file.
        names: of the action's dimensions, in order.
        kinds: what the dimensions mean; a joint's range in a URDF limits absolute targets only.

    Raises:
        BadSetting: the file is missing or malformed, or does not name every dimension.
    """
    path = Path(path)
    if not path.is_file():
        raise BadSetting(f"no limits file at {path}; give a YAML file or a URDF")
    if path.suffix == ".urdf":
        return _limits(path, _from_urdf(path, dict(zip(names, kinds, strict=True))), names)
    if path.suffix not in (".yaml", ".yml"):
        raise BadSetting(f"limits file {path} ends in {path.suffix!r}; .yaml or .urdf is needed")
    return _from_yaml(path, names, kinds)


def _from_yaml(path: Path, names: Sequence[str], kinds: Sequence[ActionKind]) -> Limits:
    data = _read_yaml(path)
    known = {"urdf", "degrees", "limits"}
    if not isinstance(data, Mapping) or not set(data) <= known or not isinstance(data.get("limits"), Mapping):
        found_keys = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise BadSetting(
            f"limits file {path} must hold 'limits: {{dimension: {{low: …}}}}', and may hold urdf and "
            f"degrees; it holds {found_keys}"
        )
    given = {_dimension(path, str(name), names): value for name, value in data["limits"].items()}
    found: dict[str, dict[str, float]] = {}
    if "urdf" in data:
        urdf = path.parent / str(data["urdf"])
        meaning = dict(zip(names, kinds, strict=True))
        found = _from_urdf(urdf, meaning, given, degrees=bool(data.get("degrees")))
    for name, values in given.items():
        found[name] = found.get(name, {}) | _numbers(path, name, values)
    return _limits(path, found, names)


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise BadSetting(
            f"limits file {path} is YAML, which needs the package pyyaml; install it, or give a URDF"
        ) from error
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadSetting(f"limits file {path} is not YAML ({' '.join(str(error).split())})") from error


def _dimension(path: Path, name: str, names: Sequence[str]) -> str:
    for full in (name, name + _SUFFIX):
        if full in names:
            return full
    raise BadSetting(
        f"limits file {path} names {name!r}, but the action's dimensions are {', '.join(names)}; "
        "use these names"
    )


def _numbers(path: Path, name: str, values: Any) -> dict[str, float]:
    if values is None:
        values = {}
    if not isinstance(values, Mapping) or not set(values) <= set(FIELDS):
        found = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)
        raise BadSetting(f"limits file {path}: {name!r} has {found}; it may have {', '.join(FIELDS)}")
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadSetting(
                f"limits file {path}: {field} of {name!r} is {value!r}; a finite number is needed"
            )
    return {str(field): float(value) for field, value in values.items()}


def _from_urdf(
    path: Path, kinds: Mapping[str, ActionKind], optional: Collection[str] = (), *, degrees: bool = False
) -> dict[str, dict[str, float]]:
    """Limits of the joints named, by name; of the optional ones, those that are there."""
    joints = _joints(path)
    found = {}
    for name, kind in kinds.items():
        joint = joints.get(name, joints.get(name.removesuffix(_SUFFIX)))
        if joint is not None:
            found[name] = _joint_limits(path, joint, kind, degrees=degrees)
        elif name not in optional:
            raise BadSetting(
                f"{path} has no joint {name!r}; it has {', '.join(joints) or 'none'}: name the action's "
                "other dimensions in a YAML file that includes it (urdf: …)"
            )
    return found


def _joints(path: Path) -> dict[str, ElementTree.Element]:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise BadSetting(f"no URDF at {path}; its path is relative to the YAML file's folder") from error
    except ElementTree.ParseError as error:
        raise BadSetting(f"{path} is not XML ({error}); export the URDF again") from error
    if root.tag != "robot":
        raise BadSetting(f"{path} begins with <{root.tag}>; a URDF begins with <robot>")
    moving = ("revolute", "prismatic", "continuous")
    return {joint.get("name", ""): joint for joint in root.findall("joint") if joint.get("type") in moving}


def _joint_limits(
    path: Path, joint: ElementTree.Element, kind: ActionKind, *, degrees: bool
) -> dict[str, float]:
    name, limit = joint.get("name"), joint.find("limit")
    attributes = {} if limit is None else limit.attrib
    try:
        numbers = {key: float(attributes[key]) for key in ("lower", "upper", "velocity") if key in attributes}
    except ValueError as error:
        raise BadSetting(f"{path}: <limit> of joint {name!r} holds no number ({error})") from error
    if joint.get("type") != "continuous" and limit is None:
        raise BadSetting(f"{path}: joint {name!r} has no <limit>; a {joint.get('type')} joint needs one")
    scale = math.degrees(1.0) if degrees and joint.get("type") != "prismatic" else 1.0
    found = {}
    if kind == ActionKind.ABSOLUTE and joint.get("type") != "continuous":  # URDF: what is left out is 0
        found = {"low": scale * numbers.get("lower", 0.0), "high": scale * numbers.get("upper", 0.0)}
    if "velocity" in numbers:
        found["velocity"] = scale * numbers["velocity"]
    return found


def _limits(path: Path, found: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> Limits:
    missing = [name for name in names if name not in found]
    if missing:
        raise BadSetting(
            f"limits file {path} does not name {', '.join(missing)}; name every dimension, with {{}} if it "
            "has no limits"
        )
    given = {field for values in found.values() for field in values}
    fields: dict[str, Any] = {
        FIELDS[field]: tuple(found[name].get(field, _NONE[field]) for name in names) for field in given
    }
    try:
        return Limits(**fields)
    except BadSetting as error:
        raise BadSetting(f"limits file {path}: {error}") from error
