"""YAML without its surprises: mappings, lists, texts, decimal numbers, true, false and null.

Refused are what makes a small file large or slow (anchors, aliases, nesting) and what may say something else
than it seems to (keys that are there twice, tags, several documents). What YAML 1.1 reads in ways of its own,
such as yes, 010, 1:30 or .inf, is a text. Keys are texts too, as they are written.
"""

import re
from collections.abc import Iterator
from typing import Any

from vivace.policies.errors import BadSetting

_DEEPEST = 8
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


def read_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says; numbers are floats.

    Args:
        text: the YAML.
        where: it is from, for messages.

    Raises:
        BadSetting: it is no YAML, or not plain; or pyyaml is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise BadSetting(
            f"{where} is YAML, which needs the package pyyaml; install it, or give a URDF"
        ) from error
    try:
        return _Reader(yaml.parse(text, yaml.SafeLoader), where).document()
    except yaml.YAMLError as error:
        raise BadSetting(f"{where} is not YAML ({' '.join(str(error).split())})") from error


class _Reader:
    """Builds plain data of pyyaml's events, which come as they are asked for."""

    def __init__(self, events: Iterator[Any], where: str) -> None:
        self._events, self._where = events, where

    def document(self) -> Any:
        """Return the one document; None if there is none."""
        value, documents = None, 0
        for event in self._events:
            if type(event).__name__ == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    self._refuse("several documents", event)
                value = self._value(next(self._events), 0)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        kind = type(event).__name__
        if kind == "AliasEvent" or event.anchor is not None:
            self._refuse("an anchor or alias", event)
        if event.tag is not None:
            self._refuse(f"a tag, {event.tag!r}", event)
        if depth > _DEEPEST:
            self._refuse(f"more than {_DEEPEST} levels", event)
        if kind == "ScalarEvent":
            return _plain(event.value) if event.style is None else event.value
        return self._mapping(depth) if kind == "MappingStartEvent" else list(self._items(depth))

    def _items(self, depth: int) -> Iterator[Any]:
        for event in self._events:
            if type(event).__name__ == "SequenceEndEvent":
                return
            yield self._value(event, depth + 1)

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in self._events:
            if type(event).__name__ == "MappingEndEvent":
                break
            if type(event).__name__ != "ScalarEvent" or event.anchor is not None or event.tag is not None:
                self._refuse("a key that is no plain text", event)
            if event.value in found:
                self._refuse(f"{event.value!r} twice", event)
            found[event.value] = self._value(next(self._events), depth + 1)
        return found

    def _refuse(self, what: str, event: Any) -> None:
        raise BadSetting(
            f"{self._where} has {what} in line {event.start_mark.line + 1}; write it out, once each"
        )


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    return float(text) if _NUMBER.fullmatch(text) else text
