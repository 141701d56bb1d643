"""Parameters as ROS knows them, made of a dataclass's fields: names, ranges, checks; needs no ROS."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from vivace.policies.errors import BadSetting

_GROUPS = ("camera", "command", "deadline", "environment", "fallback", "limits", "pose", "watchdog")
"""Parameters whose names begin so have a dot after it."""
_FOREIGN = ("qos_overrides.",)
"""Names that begin so are rclpy's own."""
_LONGEST = 4096
"""Of a text, or of a list."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as ROS knows it."""

    name: str
    default: Any
    """A list where the field holds a tuple."""
    description: str
    kind: type
    """Of a value, or of what a list holds."""
    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    is_live: bool = False
    """May be set while the node is configured; the others are read when it is configured."""

    @property
    def meaning(self) -> str:
        """Description and range, in words."""
        if self.low is None or self.high is None:
            return self.description
        return f"{self.description} {self.low} to {self.high}."


def number(default: float, low: float, high: float, description: str, is_live: bool = False) -> Any:
    """Make a field of a number, whole if its default is."""
    is_whole = isinstance(default, int)
    low, high = (int(low), int(high)) if is_whole else (float(low), float(high))
    meta = {"description": description, "of": type(default), "low": low, "high": high, "is_live": is_live}
    return field(default=default, metadata=meta)


def text(default: str | bool, description: str, is_live: bool = False) -> Any:
    """Make a field of a text, or of true or false."""
    meta = {"description": description, "of": type(default), "is_live": is_live}
    return field(default=default, metadata=meta)


def several(of: type, description: str, default: tuple[Any, ...] = ()) -> Any:
    """Make a field of a list."""
    return field(default=default, metadata={"description": description, "of": of})


def parameters_of(settings: type) -> tuple[Parameter, ...]:
    """Return every parameter of a dataclass made of the fields above, for declaring them."""
    return tuple(
        Parameter(
            parameter_name(f.name),
            list(f.default) if isinstance(f.default, tuple) else f.default,
            f.metadata["description"],
            f.metadata["of"],
            f.metadata.get("low"),
            f.metadata.get("high"),
            f.metadata.get("is_live", False),
        )
        for f in fields(settings)
    )


def parameter_name(field_name: str) -> str:
    """Name of a field as a parameter."""
    group, _, rest = field_name.partition("_")
    return f"{group}.{rest}" if group in _GROUPS else field_name


def field_name(parameter_name: str) -> str:
    """Name of a parameter as a field."""
    return parameter_name.replace(".", "_")


def read(known: Iterable[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check values, and make them fields' values.

    Raises:
        BadSetting: a name is unknown, or a value is outside its range or of another type.
    """
    by_name = {parameter.name: parameter for parameter in known}
    check_names(given, by_name)
    found = {}
    for name, value in given.items():
        parameter = by_name[name]
        check(parameter, value)
        is_list = isinstance(parameter.default, list)
        found[field_name(name)] = tuple(map(parameter.kind, value)) if is_list else parameter.kind(value)
    return found


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse parameters that nothing reads: a limit with a typing error would limit nothing.

    Raises:
        BadSetting: with the nearest name that is known.
    """
    known = list(known)
    unknown = [name for name in given if name not in known and not name.startswith(_FOREIGN)]
    if not unknown:
        return
    near = get_close_matches(unknown[0], known, n=1, cutoff=0.0)
    others = f", nor are {', '.join(unknown[1:6])}" if len(unknown) > 1 else ""
    raise BadSetting(
        f"the parameter {unknown[0]} is not known (the nearest is {near[0]}){others}; vivace-ros --example "
        "prints them all, and other nodes' parameters belong under those nodes' names"
    )


def check(parameter: Parameter, value: Any) -> None:
    """Check one value by itself; whole numbers pass for others.

    Raises:
        BadSetting: it is of another type or outside its range.
    """
    wanted = parameter.kind
    is_list = isinstance(parameter.default, list)
    texts = [value, *value] if is_list and hasattr(value, "__iter__") else [value]
    if any(hasattr(text, "__len__") and len(text) > _LONGEST for text in texts):
        raise BadSetting(f"{parameter.name} is too long; at most {_LONGEST} characters or entries are read")
    if is_list and (isinstance(value, str | bytes) or not hasattr(value, "__iter__")):
        raise BadSetting(f"{parameter.name}={value!r}; a list is needed: {parameter.description}")
    for element in value if is_list else [value]:
        is_number = wanted is float and isinstance(element, int | float) and not isinstance(element, bool)
        if not is_number and type(element) is not wanted:
            needed = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}[wanted]
            raise BadSetting(f"{parameter.name} has {element!r}; {needed} is needed: {parameter.description}")
        if wanted is float and not math.isfinite(element) and not parameter.name.startswith("limits."):
            raise BadSetting(f"{parameter.name} has {element}; a finite number is needed")
        if parameter.low is not None and not parameter.low <= element <= (parameter.high or 0.0):
            raise BadSetting(
                f"{parameter.name}={element}; needed: {parameter.low:g} to {parameter.high:g}. "
                f"{parameter.description}"
            )


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raise `BadSetting` unless a value is one of those known."""
    if value not in (listed := list(known)):
        raise BadSetting(f"{name}={value!r} is unknown; needed: {', '.join(listed)}")
