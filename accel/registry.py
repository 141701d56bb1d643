"""The techniques there are: every file in `accel/techniques`, and whatever else registers itself."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from typing import Any

from vivace.accel.technique import Seam, Technique
from vivace.accel.variant import Request, Variant
from vivace.policies.errors import BadSetting

_ROOM = "vivace.accel.techniques"
_SAID = ("kind", "seam", "label", "is_static")
"""What every technique says of itself."""
_KNOWN: dict[str, type[Technique]] = {}
"""Kind -> class."""


def register[T: type[Technique]](technique: T) -> T:
    """Make a technique known by its kind; a class decorator.

    Raises:
        BadSetting: it does not say what it is, another one has its kind, or an option has no default.
    """
    unsaid = [name for name in _SAID if not hasattr(technique, name)]
    if unsaid:
        raise BadSetting(f"{technique.__module__}.{technique.__name__} does not say its {', '.join(unsaid)}")
    needed = [f.name for f in fields(technique.Options) if f.default is f.default_factory is MISSING]
    if needed:
        raise BadSetting(
            f"technique {technique.kind!r} has options without a default: {', '.join(needed)}; give them one"
        )
    other = _KNOWN.setdefault(technique.kind, technique)
    if other is not technique:
        raise BadSetting(
            f"{technique.__module__} and {other.__module__} both register a technique {technique.kind!r}; "
            "give one of them another kind"
        )
    return technique


@cache
def _import_room() -> None:
    for module in pkgutil.iter_modules(import_module(_ROOM).__path__):
        import_module(f"{_ROOM}.{module.name}")


def techniques() -> dict[str, type[Technique]]:
    """Kind -> class of every technique, in the order in which plans apply them."""
    _import_room()
    ordered = sorted(_KNOWN.values(), key=lambda technique: (technique.seam, technique.kind))
    return {technique.kind: technique for technique in ordered}


def defaults(staged: Any) -> tuple[Request, ...]:
    """Techniques to calibrate for a policy where nobody says which."""
    return _fitting(staged, lambda technique: technique.is_default)


def exact_work(staged: Any) -> tuple[Request, ...]:
    """What removes work at no error by default; every rival has it too, so no other is credited with it."""
    return _fitting(staged, lambda technique: technique.is_default and technique.seam == Seam.EXACT)


def beside_exact_work(
    technique: type[Technique], staged: Any, options: Mapping[str, Any], name: str = ""
) -> Variant:
    """A technique's row in the table of a policy with all exact work removed besides.

    Args:
        technique: whose row it is.
        staged: the policy.
        options: of the technique.
        name: of the row; the technique's kind when empty.
    """
    wanted = (*exact_work(staged), (technique.kind, options))
    return Variant(name or technique.kind, f"exact work removed, {technique.label}", wanted, technique.colour)


def _fitting(staged: Any, is_wanted: Callable[[type[Technique]], bool]) -> tuple[Request, ...]:
    known = techniques().items()
    return tuple((kind, {}) for kind, found in known if is_wanted(found) and fits(found, staged))


def fits(technique: type[Technique], staged: Any) -> bool:
    """Whether a policy has what a technique needs."""
    return all(need.is_met(staged) for need in technique.needs)


def technique_class(kind: str) -> type[Technique]:
    """Return the class of a technique by kind; raises `BadSetting` naming the known ones."""
    known = techniques()
    if kind in known:
        return known[kind]
    renamed = today(kind)
    if renamed != kind:
        raise BadSetting(f"technique {kind!r} is called {renamed!r} now")
    raise BadSetting(f"unknown technique {kind!r}; known techniques: {', '.join(known)}")


def today(kind: str) -> str:
    """What a kind of an old plan is called today; itself if nothing is known of it."""
    return next((name for name, found in techniques().items() if kind in found.former_kinds), kind)
