"""Parameters as ROS knows them, made of a dataclass's fields: names, ranges, checks; needs no ROS."""

import ast
import inspect
import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, cast, get_args, get_type_hints

from vivace.policies.errors import BadSetting

_GROUPS = ("camera", "command", "deadline", "environment", "fallback", "limits", "pose")
"""Parameters whose names begin so have a dot after it; those of a nested dataclass have its field's name."""
NONE = type(None)
UNSET = -1
"""ROS has no None: a number that is not given."""
_FOREIGN = ("qos_overrides.",)
"""Names that begin so are rclpy's own."""
_LONGEST = 4096
"""Of a text, or of a list."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as ROS knows it."""

    name: str
    default: Any
    """A list where the field holds a tuple, `UNSET` or an empty text where it holds None."""
    description: str
    kind: type
    """Of a value, or of what a list holds."""
    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    is_live: bool = False
    """May be set while the node is configured; the others are read when it is configured."""
    place: tuple[str, ...] = ()
    """Names of the fields that lead to its value."""
    is_optional: bool = False
    """May be left open."""

    @property
    def meaning(self) -> str:
        """Description and range, in words."""
        left_open = f"{_unset(self.kind)}" or "Empty"
        said = f"{self.description} {left_open}: not given." if self.is_optional else self.description
        return said if self.low is None or self.high is None else f"{said} {self.low} to {self.high}."


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


def nested(default: Any, most: float, live: tuple[str, ...] = ()) -> Any:
    """Make a field of settings that stand elsewhere too: one parameter for each of theirs.

    Args:
        default: the settings, a frozen dataclass of numbers, texts, lists of texts, true and false; what it
            holds besides, such as settings of its own, keeps its default.
        most: the largest value of a number; the smallest is 0.
        live: fields that may be set while the node is configured.
    """
    return field(default=default, metadata={"nested": parameters_within(default, most, live)})


def parameters_of(settings: type) -> tuple[Parameter, ...]:
    """Return every parameter of a dataclass made of the fields above, for declaring them."""
    found: list[Parameter] = []
    for f in fields(settings):
        if "nested" in f.metadata:
            found += [
                replace(inner, name=f"{f.name}.{inner.name}", place=(f.name, *inner.place))
                for inner in f.metadata["nested"]
            ]
            continue
        found.append(
            Parameter(
                parameter_name(f.name),
                list(f.default) if isinstance(f.default, tuple) else f.default,
                f.metadata["description"],
                f.metadata["of"],
                f.metadata.get("low"),
                f.metadata.get("high"),
                f.metadata.get("is_live", False),
                (f.name,),
            )
        )
    return tuple(found)


def parameters_within(settings: Any, most: float, live: tuple[str, ...]) -> tuple[Parameter, ...]:
    """Return the parameters that the fields of settings make; the text below each says what it is."""
    found, types, texts = [], get_type_hints(type(settings)), _texts_below(type(settings))
    for f in fields(settings):
        kinds = {kind for kind in (get_args(types[f.name]) or (types[f.name],)) if kind is not Ellipsis}
        is_optional, value = NONE in kinds, getattr(settings, f.name)
        (kind,) = kinds - {NONE}
        if is_dataclass(kind):
            continue
        plain = next(known for known in (bool, int, float, str) if issubclass(kind, known))
        found.append(
            Parameter(
                f.name,
                list(value) if isinstance(value, tuple) else _unset(plain) if value is None else plain(value),
                texts[f.name],
                plain,
                low=plain(UNSET if is_optional else 0) if plain in (int, float) else None,
                high=plain(most) if plain in (int, float) else None,
                is_live=f.name in live,
                place=(f.name,),
                is_optional=is_optional,
            )
        )
    return tuple(found)


def _texts_below(settings: type) -> dict[str, str]:
    """Field -> the text that stands below it in the source, one line."""
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]).body
    return {
        str(above.target.id): " ".join(str(below.value.value).split())
        for above, below in zip(body, body[1:], strict=False)
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def parameter_name(field_name: str) -> str:
    """Name of a field as a parameter."""
    group, _, rest = field_name.partition("_")
    return f"{group}.{rest}" if group in _GROUPS else field_name


def read(settings: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check values by themselves, and make them values of the fields of `settings`.

    Raises:
        BadSetting: a name is unknown, or a value is outside its range or of another type.
    """
    by_name = {parameter.name: parameter for parameter in parameters_of(settings)}
    check_names(given, by_name)
    found: dict[str, Any] = {}
    for name, value in given.items():
        parameter = by_name[name]
        check(parameter, value)
        is_list = isinstance(parameter.default, list)
        read_value = tuple(map(parameter.kind, value)) if is_list else parameter.kind(value)
        if parameter.is_optional and value == _unset(parameter.kind):
            read_value = None
        *outer, last = parameter.place
        home = found.setdefault(outer[0], {}) if outer else found
        home[last] = read_value
    for f in fields(settings):
        if "nested" in f.metadata:
            default: Any = f.default
            found[f.name] = replace(default, **found.get(f.name, {}))
    return found


def _unset(kind: type) -> Any:
    """What stands for a value that is not given."""
    return "" if kind is str else UNSET


def check_names(given: Iterable[str], known: Iterable[str], renamed: Mapping[str, str] | None = None) -> None:
    """Refuse parameters that nothing reads: a limit with a typing error would limit nothing.

    Args:
        given: names.
        known: names there are.
        renamed: names of earlier versions -> those of today.

    Raises:
        BadSetting: with the nearest name that is known.
    """
    known = list(known)
    unknown = [name for name in given if name not in known and not name.startswith(_FOREIGN)]
    if not unknown:
        return
    for name in unknown:
        if name in (renamed or {}):
            raise BadSetting(f"the parameter {name} is called {(renamed or {})[name]} now; rename it")
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
