"""A gymnasium environment as the robot of a control loop.

One step of the environment is one control period. An environment that knows how much time passes in a step
says so by `control_hz`, and is run at no other rate: else the world would pass in slow motion unsaid.
"""

import copy
from typing import Any

import numpy as np

from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import IMAGES, Observation, PolicySpec


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


def camera_options(spec: PolicySpec) -> dict[str, Any]:
    """What an environment is made with so that it has the cameras a policy looks through; empty if none.

    Raises:
        BadSetting: its cameras have several sizes.
    """
    shapes = {key.removeprefix(IMAGES): s for key, s in spec.observation_shapes.items() if is_image(key)}
    sizes = {shape[-1] for shape in shapes.values()}
    if len(sizes) > 1:
        raise BadSetting(f"the policy's cameras have sizes {sorted(sizes)}; one size for all is needed")
    if not shapes:
        return {}
    return {"image_size": sizes.pop(), "cameras": tuple(shapes), "lazy_images": spec.n_obs_steps == 1}


class EnvRobot:
    """Steps an environment once per action: the world's own pace is one step a control period.

    Args:
        env: gymnasium environment with lerobot observation keys and `info["is_success"]`.
        control_hz: control rate [Hz]; see `control_rate`.
    """

    def __init__(self, env: Any, control_hz: float | None = None) -> None:
        self.env, self._period_s = env, 1.0 / control_rate(env, control_hz)
        self._values: dict[str, np.ndarray] = {}
        self._tick = 0
        self.is_over = True
        """The episode has ended: success, or the environment said so."""
        self.is_success = False

    def reset(self, seed: int) -> None:
        """Begin the episode that a seed decides."""
        values, _ = self.env.reset(seed=seed)
        self._see(values)
        self._tick, self.is_over, self.is_success = 0, False, False

    def observe(self) -> Observation:
        """Return the newest observation."""
        return Observation(self._values, self._tick, self._tick * self._period_s)

    def act(self, action: np.ndarray) -> None:
        """Advance the world by one control period; one that is over stands still.

        Raises:
            UnknownEnvironment: the environment does not say whether it succeeded.
        """
        if self.is_over:
            return
        values, _, terminated, truncated, info = self.env.step(action)
        self._see(values)
        self._tick += 1
        if "is_success" not in info:
            raise UnknownEnvironment(
                f"the environment's info has keys {sorted(info)}, but 'is_success' is needed; wrap it"
            )
        self.is_success = bool(info["is_success"])
        self.is_over = bool(terminated or truncated or self.is_success)

    def _see(self, values: dict[str, np.ndarray]) -> None:
        """Keep a copy: environments may write into the arrays they returned before."""
        if not isinstance(values, dict):
            raise UnknownEnvironment(
                f"the environment's observation is a {type(values).__name__}; a dict with lerobot's keys is "
                "needed, such as {'observation.state': …}"
            )
        self._values = copy.copy(values)  # not dict(values): images may be rendered when looked at
        for key, value in values.items():
            self._values[key] = np.array(value)
