"""Config of the policy type `vivace`: another policy's, its base, nested.

lerobot finds the policy's class by this module's name: `modeling_vivace` beside it.

    {"type": "vivace", "base": {"type": "diffusion", …}, "input_features": …, …}

What lerobot asks of a config and what it sets on one is the base's.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from lerobot.configs import PreTrainedConfig

from vivace.policies.checkpoint.config import ACCELERATED, decode
from vivace.policies.errors import PolicyNotFound, in_one_line

_SHARED = ("n_obs_steps", "input_features", "output_features", "device", "use_amp")
"""Of the fields that every config of lerobot's has, those that say what the policy is and how it runs; the
others say whose a checkpoint is, and are not the base's."""


@PreTrainedConfig.register_subclass(ACCELERATED)
@dataclass
class VivaceConfig(PreTrainedConfig):
    """Settings of a policy under a plan."""

    base: dict[str, Any] = field(default_factory=dict)
    """config.json of the policy that is run, its type among it."""
    n_action_steps: int | None = None
    """Actions executed of a chunk; the base's own number when None."""

    def __post_init__(self) -> None:
        """Build the base's config; what is said here besides holds for it.

        Raises:
            PolicyNotFound: it is none that lerobot knows.
        """
        if not self.base:
            raise PolicyNotFound(
                f"a config of type {ACCELERATED!r} names no base; it is made by vivace accelerate CKPT OUT"
            )
        executed = {} if self.n_action_steps is None else {"n_action_steps": self.n_action_steps}
        try:
            built = decode({**self.base, **executed})
        except Exception as error:  # draccus raises many kinds for a foreign field or value
            raise PolicyNotFound(
                f"what a config of type {ACCELERATED!r} has as its base is no config of lerobot 0.6: "
                f"{in_one_line(error)}"
            ) from error
        self.n_obs_steps = built.n_obs_steps
        self.n_action_steps = getattr(built, "n_action_steps", None)
        self.input_features = self.input_features or built.input_features
        self.output_features = self.output_features or built.output_features
        super().__post_init__()
        self.built = built
        for name in _SHARED:
            setattr(built, name, getattr(self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Tell the base too what lerobot sets, such as `rtc_config`."""
        super().__setattr__(name, value)
        built = self.__dict__.get("built")
        is_own = name not in _SHARED and name in _OWN
        if built is not None and not is_own and hasattr(built, name):
            setattr(built, name, value)

    def __getattr__(self, name: str) -> Any:
        """What only the base's config has."""
        built = self.__dict__.get("built")
        if built is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(built, name)

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Observations of one window, relative to now."""
        return self.built.observation_delta_indices

    @property
    def action_delta_indices(self) -> list[int] | None:
        """Actions of one window, relative to now."""
        return self.built.action_delta_indices

    @property
    def reward_delta_indices(self) -> list[int] | None:
        """Rewards of one window, relative to now."""
        return self.built.reward_delta_indices

    def get_optimizer_preset(self) -> Any:
        """The base's."""
        return self.built.get_optimizer_preset()

    def get_scheduler_preset(self) -> Any:
        """The base's."""
        return self.built.get_scheduler_preset()

    def validate_features(self) -> None:
        """The base's check."""
        self.built.validate_features()


_OWN = {known.name for known in fields(VivaceConfig)} | {"built"}
