"""Limits of a robot's actions, read from a YAML file or from the robot's URDF.

The YAML names every dimension of the action once; what a dimension lacks does not apply to it:

    urdf: arm.urdf            # optional: limits of the joints of that name, overridden below
    degrees: true             # optional: actions are in degrees, the URDF in radians
    limits:
      shoulder_pan: {low: -1.9, high: 1.9, step: 0.1, velocity: 2.0, acceleration: 8.0}
      gripper: {}

`step` is per tick, `velocity` per second, `acceleration` per second squared, in the units of the action.
Actions of lerobot's names (`shoulder_pan.pos`) are in degrees, in -100…100 or in radians, as their robot was
calibrated: beside a URDF, which is in radians, `degrees` must say which.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.deploy.loop.guard import Limits
from vivace.deploy.robots.urdf import Joint, read_urdf
from vivace.deploy.system.plain_yaml import read_yaml
from vivace.deploy.system.small_text import read_text
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind

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
_LARGEST = 65_536
_LONGEST = 1000
"""Most characters of a message."""


def load_limits(path: str | Path, names: Sequence[str], kinds: Sequence[ActionKind]) -> Limits:
    """Read limits for actions whose dimensions have these names.

    Args:
        path: a .yaml or .yml file, or a .urdf file.
        names: of the action's dimensions, in order.
        kinds: what the dimensions mean; a joint's range in a URDF limits absolute targets only.

    Raises:
        BadSetting: the file is missing or malformed, does not name every dimension, leaves one no room to
            move or to stand still, or does not say its units.
    """
    try:
        return _load(Path(path), dict(zip(names, kinds, strict=True)))
    except BadSetting as error:
        raise BadSetting(_line(str(error))) from error


def _load(path: Path, meaning: Mapping[str, ActionKind]) -> Limits:
    if not path.exists():
        raise BadSetting(f"no limits file at {path}; give a YAML file or a URDF")
    if path.suffix == ".urdf":
        return _limits(path, _from_urdf(path, meaning, {}, None), meaning)
    if path.suffix not in (".yaml", ".yml"):
        raise BadSetting(f"limits file {path} ends in {path.suffix!r}; .yaml or .urdf is needed")
    return _limits(path, _from_yaml(path, meaning), meaning)


def _line(message: str) -> str:
    """Return a message as one line that can be read: what it quotes may be of any length."""
    text = " ".join(message.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _from_yaml(path: Path, meaning: Mapping[str, ActionKind]) -> dict[str, dict[str, float]]:
    data = read_yaml(read_text(path, _LARGEST, "limits file"), f"limits file {path}")
    known = {"urdf", "degrees", "limits"}
    if not isinstance(data, Mapping) or not set(data) <= known or not isinstance(data.get("limits"), Mapping):
        found_keys = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise BadSetting(
            f"limits file {path} must hold 'limits: {{dimension: {{low: …}}}}', and may hold urdf and "
            f"degrees; it holds {found_keys}"
        )
    given: dict[str, dict[str, float]] = {}
    for name, values in data["limits"].items():
        full = _dimension(path, name, tuple(meaning))
        if full in given:
            raise BadSetting(
                f"limits file {path} names {full!r} twice, with and without its end; name it once"
            )
        given[full] = _numbers(path, name, values)
    degrees, urdf = data.get("degrees"), data.get("urdf")
    if not (degrees is None or isinstance(degrees, bool)) or not (urdf is None or isinstance(urdf, str)):
        raise BadSetting(
            f"limits file {path} has urdf={urdf!r} and degrees={degrees!r}; a path, and true or false, "
            "are needed"
        )
    if urdf is None:
        if degrees is not None:
            raise BadSetting(
                f"limits file {path} has degrees and no urdf; its own limits are in the units of the actions"
            )
        return given
    found = _from_urdf(path.parent / urdf, meaning, given, degrees)
    return {name: found.get(name, {}) | given.get(name, {}) for name in (*found, *given)}


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
        found = sorted(values) if isinstance(values, Mapping) else repr(values)
        raise BadSetting(f"limits file {path}: {name!r} has {found}; it may have {', '.join(FIELDS)}")
    for field, value in values.items():
        if not isinstance(value, float) or not math.isfinite(value):
            raise BadSetting(
                f"limits file {path}: {field} of {name!r} is {value!r}; a finite number is needed"
            )
    return dict(values)


def _from_urdf(
    path: Path,
    meaning: Mapping[str, ActionKind],
    given: Mapping[str, Mapping[str, float]],
    degrees: bool | None,
) -> dict[str, dict[str, float]]:
    """Limits of the joints of the dimensions' names; those that are given need not be there."""
    if not path.exists():
        raise BadSetting(f"no URDF at {path}; its path is relative to the YAML file's folder")
    joints = read_urdf(path)
    found = {}
    for name, kind in meaning.items():
        joint = joints.get(name, joints.get(name.removesuffix(_SUFFIX)))
        own = given.get(name)
        if joint is not None:
            found[name] = _of_joint(joint, name, kind, own or {}, degrees)
        elif own is None:
            raise BadSetting(
                f"{path} has no joint {name!r}; it has {', '.join(joints) or 'none'}: name the action's "
                "other dimensions in a YAML file that includes it (urdf: …)"
            )
    return found


def _of_joint(
    joint: Joint, name: str, kind: ActionKind, own: Mapping[str, float], degrees: bool | None
) -> dict[str, float]:
    """What a joint says that is not given anyway, in the units of the action."""
    found = {}
    if kind == ActionKind.ABSOLUTE and not {"low", "high"} <= set(own) and (ends := joint.range()):
        found = dict(zip(("low", "high"), ends, strict=True))
    if "velocity" not in own and (speed := joint.velocity()) is not None:
        found["velocity"] = speed
    if found and joint.is_angle and degrees is None and name.endswith(_SUFFIX):
        raise BadSetting(
            f"{joint.where} is in radians, but {name!r} is a name of lerobot's, whose joints are in degrees "
            "or -100…100: include the URDF in a YAML file that says degrees: true (or false, if they are "
            "radians); for -100…100 give low and high there instead"
        )
    scale = math.degrees(1.0) if degrees and joint.is_angle else 1.0
    return {field: scale * value for field, value in found.items()}


def _limits(
    path: Path, found: Mapping[str, Mapping[str, float]], meaning: Mapping[str, ActionKind]
) -> Limits:
    missing = [name for name in meaning if name not in found]
    if missing:
        raise BadSetting(
            f"limits file {path} does not name {', '.join(missing)}; name every dimension, with {{}} if it "
            "has no limits"
        )
    for name, kind in meaning.items():
        _check_room(path, name, kind, _NONE | dict(found[name]))
    given = {field for values in found.values() for field in values}
    fields: dict[str, Any] = {
        FIELDS[field]: tuple(found[name].get(field, _NONE[field]) for name in meaning) for field in given
    }
    return Limits(**fields)


def _check_room(path: Path, name: str, kind: ActionKind, values: Mapping[str, float]) -> None:
    """Raise `BadSetting` unless a dimension may move, and stand still."""
    low, high = values["low"], values["high"]
    if not low < high:
        raise BadSetting(
            f"limits file {path}: {name!r} has low {low:g}, high {high:g}; low below high is needed"
        )
    for field in ("step", "velocity", "acceleration"):
        if not values[field] > 0:
            raise BadSetting(
                f"limits file {path}: {field} of {name!r} is {values[field]:g}; above 0 is needed"
            )
    if kind != ActionKind.ABSOLUTE and not low <= 0 <= high:
        raise BadSetting(
            f"limits file {path}: {name!r} is a {kind}, and {low:g} to {high:g} lets it never stand still; a "
            "range with 0 in it is needed"
        )
