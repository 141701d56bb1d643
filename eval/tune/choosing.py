"""How one choice of a candidate is made: asked of Optuna, as in another candidate, or nearly so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna import Trial as Asked
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from vivace.accel.registry import techniques
from vivace.accel.variant import Choices
from vivace.policies.plain_data import Between

NONE = "none"
MUTATED = 0.2
"""Chance that a choice is made anew."""
_MANY = 16
"""A range whose end is so many times its beginning is tried evenly in its logarithm: 4 steps differ from 8
as 40 from 80."""


@dataclass
class Replay:
    """Chooses what a candidate has, and takes it down."""

    requests: Mapping[str, Mapping[str, Any]]
    found: dict[str, tuple[Any, BaseDistribution]] = field(default_factory=dict)
    """Name of a choice -> value, and what it is one of."""

    def __call__(self, option: str, choices: Choices, widest: range | None = None) -> Any:
        """Return what the candidate has; as of `Choose`."""
        value = self._value(option, choices)
        if _is_in(value, choices):
            self.found[option] = value, _distribution(choices, widest)
        return value

    def _value(self, name: str, choices: Choices) -> Any:
        kind, _, option = name.partition(".")
        if option:
            return self._option(kind, *option.split("."))
        if choices == (False, True):
            return kind in self.requests
        assert isinstance(choices, tuple)
        return next((one for one in choices if one in self.requests), NONE)

    def _option(self, kind: str, option: str, place: str = "") -> Any:
        """An option, or what it holds at a place; the usual one where the candidate says nothing."""
        of = vars(techniques()[kind].Options()) | dict(self.requests[kind])
        value = of.get(option)
        if not place:
            return value
        return value[int(place)] if value and int(place) < len(value) else None


def _distribution(choices: Choices, widest: range | None = None) -> BaseDistribution:
    """What Optuna calls it."""
    if isinstance(choices, Between):
        return FloatDistribution(choices.low, choices.high)
    if isinstance(choices, range):
        return IntDistribution(choices[0], choices[-1], log=_is_wide(widest or choices))
    return CategoricalDistribution(choices)


def ask(asked: Asked, name: str, choices: Choices, widest: range | None = None) -> Any:
    """Let a trial of Optuna choose one."""
    if isinstance(choices, Between):
        return asked.suggest_float(name, choices.low, choices.high)
    if isinstance(choices, range):
        return asked.suggest_int(name, choices[0], choices[-1], log=_is_wide(widest or choices))
    return asked.suggest_categorical(name, choices)


def mutated(
    own: Mapping[str, Any],
    random: np.random.Generator,
    name: str,
    choices: Choices,
    widest: range | None = None,
) -> Any:
    """What a candidate has, or something near; where it has nothing, anything."""
    value: Any = own.get(name)
    is_known = name in own and _is_in(value, choices)
    if is_known and random.random() >= MUTATED:
        return value
    if isinstance(choices, Between):
        reach = (choices.high - choices.low) / 4
        drawn = random.normal(value, reach) if is_known else random.uniform(choices.low, choices.high)
        return float(np.clip(drawn, choices.low, choices.high))
    if isinstance(choices, range) and is_known:
        return int(np.clip(value + random.choice([-2, -1, 1, 2]), choices[0], choices[-1]))
    return choices[int(random.integers(len(choices)))]


def others(value: Any, among: BaseDistribution) -> list[Any]:
    """What else a choice may be, near it where there is an order."""
    if isinstance(among, CategoricalDistribution):
        return [it for it in among.choices if it != value]
    if isinstance(among, IntDistribution):
        return [it for it in (value - 2, value - 1, value + 1, value + 2) if among.low <= it <= among.high]
    assert isinstance(among, FloatDistribution)
    reach = (among.high - among.low) / 4
    return [it for it in (value - reach, value + reach) if among.low <= it <= among.high]


def stepped(own: Mapping[str, Any], name: str, choices: Choices, widest: range | None = None) -> Any:
    """What a candidate has; where it has nothing, what is usual, or the middle."""
    kind, _, option = name.partition(".")
    usual = vars(techniques()[kind].Options()).get(option) if option else False
    for value in (own.get(name), usual):
        if value is not None and _is_in(value, choices):
            return value
    if isinstance(choices, Between):
        return (choices.low + choices.high) / 2
    if name in own and isinstance(choices, range):  # it had one of a range that is another one now
        return int(np.clip(own[name], choices[0], choices[-1]))
    return NONE if NONE in choices else choices[len(choices) // 2]


def _is_in(value: Any, choices: Choices) -> bool:
    """Whether it is one of them."""
    if isinstance(choices, Between):
        return isinstance(value, int | float) and choices.low <= value <= choices.high
    return value in choices


def _is_wide(choices: range) -> bool:
    return choices[0] >= 1 and choices[-1] >= _MANY * choices[0]
