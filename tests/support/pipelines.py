"""A preprocessor without steps: it normalises nothing, and tells the policy some words."""

from typing import Any


class Telling:
    """Hands on what it is given, with the same words each time."""

    steps = ()

    def __init__(self, words: dict[str, Any]):
        self._words = words

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | self._words
