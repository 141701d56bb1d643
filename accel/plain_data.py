"""Plain data read strictly: JSON files, and settings dataclasses built from it field by field.

A value is what its field's annotation says, or it is refused: 1.5 is no int, true is no number, NaN is
nothing. What annotations cannot say (which blocks, how many steps) each technique's `check` compares with the
policy.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vivace.policies.errors import BadSetting, PlanMismatch

MAX_BYTES = 64 * 2**20
"""Of a plan's JSON; the channels of a 7-billion VLA take 2 MB."""
MAX_DEPTH = 16
"""Of nested lists and objects; plans need 6."""
_MAX_INT = 2**63
"""Tensors hold no larger whole number."""


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        PlanMismatch: it is too large, no JSON, nested too deeply, or an object has a key twice.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise PlanMismatch(f"{file} has {size} bytes; at most {MAX_BYTES} are read; recalibrate")
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except RecursionError as error:
        raise PlanMismatch(f"{file} is nested too deeply; at most {MAX_DEPTH} levels; recalibrate") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise PlanMismatch(f"{file} is not JSON ({error}); recalibrate") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise PlanMismatch(f"key {twice!r} is there twice in one object; keep one, or recalibrate")
    return found


def check_plain(value: Any, where: str, depth: int = MAX_DEPTH) -> None:
    """Raise `BadSetting` unless a value is what JSON can hold: finite numbers, text, lists and objects of it.

    Args:
        value: the value.
        where: what it is called in the message.
        depth: how many levels of lists and objects it may have.
    """
    if isinstance(value, Mapping | list | tuple):
        if depth == 0:
            raise BadSetting(f"{where} is nested too deeply; at most {MAX_DEPTH} levels are read")
        names = value if isinstance(value, Mapping) else range(len(value))
        for name in names:
            if isinstance(value, Mapping) and not isinstance(name, str):
                raise BadSetting(f"{where} has the key {_shown(name)}; keys are text")
            check_plain(value[name], f"{where}.{name}", depth - 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= _MAX_INT:
            raise BadSetting(f"{where} is {_shown(value)}; whole numbers have at most 63 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadSetting(f"{where} is {value}; numbers are finite")
    elif not isinstance(value, str | bool | None):
        raise BadSetting(f"{where} is {_shown(value)}; numbers, text, lists and objects are plain data")


def build[T](settings_class: type[T], name: str, values: Mapping[str, Any]) -> T:
    """Build a settings dataclass from plain data.

    Args:
        settings_class: the dataclass.
        name: what it is called in messages.
        values: field -> value; lists become tuples, whole numbers floats where floats are wanted.

    Raises:
        BadSetting: a field is unknown, missing or of another type.
    """
    if not isinstance(values, Mapping):
        raise BadSetting(f"{name} is {_shown(values)}; needed is an object")
    hints = get_type_hints(settings_class)
    known = {field.name: field for field in fields(settings_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise BadSetting(f"{name} has no option {unknown[0]!r}; its options: {', '.join(sorted(known))}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise BadSetting(f"{name} lacks {key!r}; its fields: {', '.join(known)}")
    return settings_class(**{key: _read(value, hints[key], f"{name} {key}") for key, value in values.items()})


def check_types(settings: Any, name: str) -> None:
    """Raise `BadSetting` unless every field of a settings dataclass is what its annotation says."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        _read(getattr(settings, field.name), hints[field.name], f"{name} {field.name}")


def _read(value: Any, wanted: Any, where: str) -> Any:
    """Return a value as its annotation wants it."""
    origin, args = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        check_plain(value, where)
        return value
    if origin in (Union, UnionType):  # of ours every one is "something | None"
        if value is None:
            return None
        wanted = next(arg for arg in args if arg is not NoneType)
        return _read(value, wanted, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            _read(key, args[0], f"a key of {where}"): _read(item, args[1], f"{where}.{key}")
            for key, item in value.items()
        }
    if _is(value, wanted):
        return float(value) if wanted is float else value
    raise BadSetting(f"{where} is {_shown(value)}; needed is {_named(wanted)}")


def _is(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return isinstance(value, str) and value in get_args(wanted)
    if get_origin(wanted) is not None:
        return False
    if isinstance(value, bool):
        return wanted is bool
    if isinstance(value, int) and wanted in (int, float):
        return abs(value) < _MAX_INT
    if wanted is float:
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, wanted)


def _shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:60] + "…"


def _named(wanted: Any) -> str:
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        return f"a list of {_named(args[0])}s"
    if origin is not None:
        return "an object"
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}.get(
        wanted, f"a {wanted.__name__}"
    )
