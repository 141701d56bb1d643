"""Things by their type: ours, those a program registers, and those that installed packages offer."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from vivace.policies.errors import BadSetting
from vivace.policies.extras import how_to_install


class Registry:
    """Type -> what stands for it, imported when it is asked for.

    Args:
        what: one of them, in words for messages.
        group: group of entry points by which installed packages offer others; read for unknown types only.
        places: type -> "package.module" or "package.module:name" of ours.
    """

    def __init__(self, what: str, group: str, places: Mapping[str, str]) -> None:
        self._what, self._group, self._places = what, group, dict(places)

    def register(self, name: str, place: str) -> None:
        """Make one known in this process; a type that another place stands for already is refused.

        Args:
            name: the type.
            place: "package.module" or "package.module:name".

        Raises:
            BadSetting: the type is taken.
        """
        if self._places.get(name, place) != place:
            raise BadSetting(
                f"{self._what} {name!r} is {self._places[name]} already, so {place} needs another name"
            )
        self._places[name] = place

    def names(self) -> tuple[str, ...]:
        """Return the types there are, ours first."""
        offered = {point.name for point in entry_points(group=self._group)}
        return (*self._places, *sorted(offered - set(self._places)))

    def find(self, name: str) -> Any:
        """Return what stands for a type; None if nothing does.

        Raises:
            BadSetting: it cannot be imported, or two packages offer the type.
        """
        place = self._places.get(name) or self._offered(name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        try:
            found = import_module(module)
            return getattr(found, attribute) if attribute else found
        except (ImportError, AttributeError) as error:
            needs = how_to_install(error) if isinstance(error, ImportError) else ""
            raise BadSetting(
                f"{self._what} {name!r} cannot be imported from {place} ({error}); "
                f"{needs or 'install what it needs, or mend the package that offers it'}"
            ) from error

    def _offered(self, name: str) -> str | None:
        places = {point.value for point in entry_points(group=self._group, name=name)}
        if len(places) > 1:
            raise BadSetting(
                f"{self._what} {name!r} is offered by several packages: {', '.join(sorted(places))}; "
                "uninstall all but one"
            )
        return next(iter(places), None)
