"""Plain data read strictly: JSON, and dataclasses built from it field by field; free of torch.

A value is what its field's annotation says, or it is refused: 1.5 is no int, true is no number, NaN is
nothing. Annotations may be plain types, enumerations of text, arrays, tuples, mappings, other dataclasses,
and `Annotated` ones with bounds:

    count: Annotated[int, Between(1, 64)]
    shape: Annotated[tuple[int, ...], Longest(8)]

What annotations cannot say (how many steps a policy has) is compared by those who know.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from vivace.policies.backports import StrEnum
from vivace.policies.errors import BadSetting

_T = TypeVar("_T")

MAX_BYTES = 64 * 2**20
"""Of a JSON file; the channels of a plan for a 7-billion VLA take 2 MB."""
MAX_DEPTH = 16
"""Of nested lists and objects; plans need 6, manifests 8."""
_MAX_INT = 2**63
"""Tensors hold no larger whole number."""
_SHOWN = 60
"""Characters of a value in a message."""
_SHORT = Repr()  # Python 3.10 takes no arguments here
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxstring = _SHOWN
"""Of lists and objects, which may be large."""


SELDOM = {"is_seldom": True}
"""Metadata of a field that is written only where it is not its default: older files stay as they are."""


@dataclass(frozen=True)
class Between:
    """Bound of a number."""

    low: float
    high: float


@dataclass(frozen=True)
class Longest:
    """Bound of how many entries a list or an object has, or characters a text."""

    length: int


def read_json(file: Path) -> Any:
    """Read a JSON file; raises `BadSetting` as `parse_json`, and if it is too large or cannot be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadSetting(f"{file} cannot be read ({error})") from error
    if len(data) > MAX_BYTES:
        raise BadSetting(f"{file} has more than {MAX_BYTES} bytes; no more are read")
    return parse_json(data, str(file))


def parse_json(data: bytes, name: str) -> Any:
    """Return what JSON says.

    Args:
        data: UTF-8.
        name: what it is called in messages.

    Raises:
        BadSetting: it is no JSON, is nested too deeply, or an object has a key twice.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_once)
    except RecursionError as error:
        raise BadSetting(f"{name} is nested too deeply; at most {MAX_DEPTH} levels") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise BadSetting(f"{name} is not JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadSetting(f"key {shown(twice)} is there twice in one object; keep one")
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
                raise BadSetting(f"{where} has the key {shown(name)}; keys are text")
            check_plain(value[name], _inside(where, name), depth - 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= _MAX_INT:
            raise BadSetting(f"{where} is {shown(value)}; whole numbers have at most 63 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadSetting(f"{where} is {value}; numbers are finite")
    elif not isinstance(value, str | bool | None):
        raise BadSetting(f"{where} is {shown(value)}; numbers, text, lists and objects are plain data")


def build(settings_class: type[_T], name: str, values: Any) -> _T:
    """Build a dataclass from plain data.

    Args:
        settings_class: the dataclass.
        name: what it is called in messages.
        values: object of field -> value; lists become tuples or arrays, whole numbers floats where floats
            are wanted, objects dataclasses.

    Raises:
        BadSetting: a field is unknown, missing or of another type, or a bound does not hold.
    """
    if not isinstance(values, Mapping):
        raise BadSetting(f"{name} is {shown(values)}; needed is an object")
    hints = get_type_hints(settings_class, include_extras=True)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(settings_class)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise BadSetting(f"{name} has no option {shown(unknown[0])}; its options: {', '.join(sorted(known))}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise BadSetting(f"{name} lacks {key!r}; its fields: {', '.join(known)}")
    return settings_class(**{key: _read(value, hints[key], f"{name} {key}") for key, value in values.items()})


def check_types(settings: Any, name: str) -> None:
    """Raise `BadSetting` unless every field of a dataclass is what its annotation says."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        _read(getattr(settings, field.name), hints[field.name], f"{name} {field.name}")


def plain(value: Any) -> Any:
    """Plain data of a dataclass, or of what its fields hold; `build` restores it."""
    if is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in fields(value) if is_told(value, field)
        }
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def is_told(value: Any, field: Field[Any]) -> bool:
    """Whether a field of a dataclass is written: not if it is seldom needed, and is its default."""
    return not field.metadata.get("is_seldom") or bool(getattr(value, field.name) != field.default)


def shown(value: Any) -> str:
    """A value in a message, cut where it is long; always one line."""
    if isinstance(value, str) and len(value) > _SHOWN:
        value = value[: _SHOWN - 1] + "…"
    try:
        text = _SHORT.repr(value) if isinstance(value, Mapping | list | tuple) else repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN + len("''") else text[:_SHOWN] + "…"


def _inside(where: str, name: Any) -> str:
    """What an entry of something is called."""
    plain_name = isinstance(name, int) or (name.isprintable() and len(name) <= _SHOWN)
    return f"{where}.{name if plain_name else shown(name)}"


def _read(value: Any, wanted: Any, where: str) -> Any:
    """Return a value as its annotation wants it."""
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        found = _read(value, args[0], where)
        for bound in args[1:]:
            _check_bound(found, bound, where)
        return found
    if wanted is Any:
        check_plain(value, where)
        return value
    if origin in (Union, UnionType):  # of ours every one is "something | None"
        if value is None:
            return None
        return _read(value, next(arg for arg in args if arg is not NoneType), where)
    if origin is tuple and isinstance(value, list | tuple):
        return _tuple(value, args, where)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            _read(key, args[0], f"a key of {where}"): _read(item, args[1], _inside(where, key))
            for key, item in value.items()
        }
    if isinstance(wanted, type) and is_dataclass(wanted):
        if not isinstance(value, wanted):
            return build(wanted, where, value)
        check_types(value, where)
        return value
    if wanted is np.ndarray:
        return _array(value, where)
    if isinstance(wanted, type) and issubclass(wanted, StrEnum) and value in list(wanted):
        return wanted(value)
    if _is(value, wanted):
        return float(value) if wanted is float else value
    raise BadSetting(f"{where} is {shown(value)}; needed is {_named(wanted)}")


def _tuple(value: Sequence[Any], args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(kinds) != len(value):
        raise BadSetting(f"{where} has {len(value)} entries; needed are {len(kinds)}")
    return tuple(
        _read(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _array(value: Any, where: str) -> np.ndarray:
    """Return lists of finite numbers, of any depth, as a float32 array."""
    if not isinstance(value, np.ndarray):
        check_plain(value, where)
    try:
        array = np.array(value)
    except ValueError:  # rows of unlike lengths
        array = np.array(None)
    if array.dtype.kind not in "iuf":
        raise BadSetting(f"{where} is {shown(value)}; needed are lists of finite numbers, all of one length")
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise BadSetting(f"{where} is {shown(value)}; needed are numbers that 32 bits can hold")
    return found


def _check_bound(value: Any, bound: Any, where: str) -> None:
    if value is None:
        return
    if isinstance(bound, Between) and not bound.low <= value <= bound.high:
        raise BadSetting(f"{where} is {shown(value)}; needed: {bound.low:g}..{bound.high:g}")
    if isinstance(bound, Longest) and len(value) > bound.length:
        raise BadSetting(f"{where} has a length of {len(value)}; at most {bound.length} is read")


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


def _named(wanted: Any) -> str:
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is Annotated:
        return _named(args[0])
    if origin is tuple:
        return f"a list of {_named(args[0])}s"
    if origin is not None:
        return "an object"
    if isinstance(wanted, type) and issubclass(wanted, StrEnum):
        return f"one of {', '.join(repr(str(value)) for value in wanted)}"
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}.get(
        wanted, f"a {wanted.__name__}"
    )
