"""A gymnasium environment as the robot of a control loop.

One step of the environment is one control period. An environment that knows how much time passes in a step
says so by `control_hz`, and is run at no other rate: else the world would pass in slow motion unsaid.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import Observation


def control_rate(env: Any, wanted_hz: float | None) -> float:
    """Return the rate at which an environment is stepped [Hz].

    Args:
        env: with `control_hz` where it knows how long a step is.
        wanted_hz: what was asked for; the environment's own when None.

    Raises:
        BadSetting: the environment steps at another rate, or neither says which.
    """
    own_hz = getattr(env, "control_hz", None)
    rate = own_hz if wanted_hz is None else wanted_hz
    if rate is None:
        raise BadSetting("neither the environment nor the settings say how long a step is; give control_hz")
    if own_hz is not None and rate != own_hz:
        raise BadSetting(
            f"control_hz={rate:g}, but a step of this environment is 1/{own_hz:g} s of its physics; "
            f"make the environment with control_hz={rate:g}"
        )
    return float(rate)


def check_ends(env: Any, max_steps: int | None) -> None:
    """Raise `BadSetting` where an environment says that it has no end, and none was asked for."""
    if max_steps is None and getattr(env, "max_episode_steps", 0) is None:
        raise BadSetting("an episode of this environment has no end; give --env.max_steps")


class EnvRobot:
    """Steps an environment once per action: the world's own pace is one step a control period.

    Args:
        env: a `vivace.envs.protocol.World`: gymnasium environment with lerobot observation keys.
        control_hz: control rate [Hz]; see `control_rate`.
    """

    def __init__(self, env: Any, control_hz: float | None = None) -> None:
        self.env, self._period_s = env, 1.0 / control_rate(env, control_hz)
        self._values: dict[str, np.ndarray] = {}
        self._tick = 0
        self.is_over = True
        """The episode has ended: success, or the environment said so."""
        self.is_success = False
        self.score: float | None = None
        """Best score of the episode so far; None if the environment gives none."""
        self._is_judged = False
        self._told: tuple[str, ...] = ()

    @property
    def initial_action(self) -> tuple[float, ...] | None:
        """What is held before the first action of this episode (A,); None if the environment is silent."""
        found = getattr(self.env, "initial_action", None)
        return None if found is None else tuple(float(value) for value in found)

    def reset(self, seed: int) -> None:
        """Begin the episode that a seed decides."""
        values, _ = self.env.reset(seed=seed)
        self._see(values)
        self._tick, self.is_over, self.is_success = 0, False, False
        self.score, self._is_judged = None, False

    def observe(self) -> Observation:
        """Return the newest observation."""
        return Observation(self._values, self._tick, self._tick * self._period_s)

    def act(self, action: np.ndarray) -> None:
        """Advance the world by one control period; one that is over stands still."""
        if self.is_over:
            return
        values, _, terminated, truncated, info = self.env.step(action)
        self._see(values)
        self._tick += 1
        self._is_judged = self._is_judged or "is_success" in info
        self.is_success = bool(info.get("is_success", False))
        if info.get("score") is not None:
            score = float(info["score"])
            self.score = score if self.score is None else max(self.score, score)
        self.is_over = bool(terminated or truncated or self.is_success)
        self._told = tuple(sorted(map(str, info)))

    def check_judged(self) -> None:
        """Raise `UnknownEnvironment` if nobody has said in this episode whether it succeeded, or how well."""
        if not self._is_judged and self.score is None:
            raise UnknownEnvironment(
                f"the environment's info has keys {', '.join(self._told) or 'none'}, and 'is_success' at no "
                "step of an episode; wrap it, or say what tells success or how well it went: "
                "--env.success_key, --env.score (--env.type=gym)"
            )

    def _see(self, values: dict[str, np.ndarray]) -> None:
        """Keep a copy: environments may write into the arrays they returned before."""
        if not isinstance(values, dict):
            raise UnknownEnvironment(
                f"the environment's observation is a {type(values).__name__}; a dict with lerobot's keys is "
                "needed, such as {'observation.state': …}"
            )
        self._values = copy.copy(values)  # not dict(values): images may be rendered when looked at
        for key, value in values.items():
            if isinstance(value, Mapping):
                del self._values[key]
                self._values.update(_flat(value, f"{key}."))
            else:
                self._values[key] = np.array(value)


def _flat(values: Mapping[str, Any], before: str) -> dict[str, np.ndarray]:
    """Copies of the arrays in nested mappings, by dotted keys."""
    found: dict[str, np.ndarray] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = np.array(value)
    return found
