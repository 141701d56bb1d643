"""What is published of an architecture beyond the defaults of lerobot's config class, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class
from torch import Tensor, ones, zeros

from vivace.policies.registry import Registry
from vivace.policies.spec import STATE

_ROOM = "vivace.policies.published"
ARCHITECTURES = Registry(
    "published architecture",
    _ROOM,
    {
        "smolvla": f"{_ROOM}.smolvla:SMOLVLA",
        "pi0": f"{_ROOM}.pi:PI0",
        "pi05": f"{_ROOM}.pi:PI05",
        "groot": f"{_ROOM}.groot:GROOT",
        "xvla": f"{_ROOM}.xvla:XVLA",
        "act": f"{_ROOM}.act:ACT",
        "diffusion": f"{_ROOM}.diffusion:DIFFUSION",
    },
)
"""lerobot policy type -> its `Architecture`."""


def _nothing(folder: Path) -> dict[str, Any]:
    """Write nothing: this type fetches nothing."""
    return {}


def _as_lerobot_does(config: Any) -> Any:
    """Build a policy by lerobot's own class."""
    policy_class: Any = get_policy_class(config.type)
    return policy_class(config)


def _as_it_is(pipeline: Any, folder: Path) -> None:
    """Leave a preprocessor as it was made."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A policy type as it was published: what its checkpoint says that lerobot's defaults do not."""

    source: str
    """Where the numbers are from."""
    cameras: Mapping[str, tuple[int, int]]
    """Key of each camera -> height and width of its pictures."""
    state: int
    """Numbers of the robot's state."""
    actions: int
    """Numbers of an action."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of lerobot's config that are not its defaults."""
    write: Callable[[Path], Mapping[str, Any]] = _nothing
    """Write into a folder what lerobot would fetch from the Hub; returns the config's fields that name it."""
    build: Callable[[Any], Any] = _as_lerobot_does
    """Build the policy that a config describes."""
    runs_when_built: bool = False
    """Its class runs a part of itself while it is made, so its weights are there before they are counted."""
    ready: Callable[[Any, Path], None] = _as_it_is
    """Let a preprocessor read what was written instead of what it names on the Hub."""

    def features(self, cameras: int | None = None) -> dict[str, Any]:
        """Inputs and outputs as fields of lerobot's config.

        Args:
            cameras: how many; the first ones, more of the first one's size than were published with others'
                names. As published when None.
        """
        seen = dict(list(self.cameras.items())[:cameras])
        size = next(iter(self.cameras.values()))
        for i in range(len(seen), len(seen) if cameras is None else cameras):
            seen[f"observation.images.more_{i}"] = size
        inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, *hw)) for key, hw in seen.items()}
        inputs[STATE] = PolicyFeature(FeatureType.STATE, (self.state,))
        return {
            "input_features": inputs,
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (self.actions,))},
        }


def plain_statistics(features: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Statistics under which normalising changes nothing but takes its time, of every feature."""
    found = {}
    for key, feature in features.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else tuple(feature.shape)
        low, middle, high = -ones(shape), zeros(shape), ones(shape)
        found[key] = {"mean": middle, "std": high, "min": low, "max": high, "q01": low, "q99": high}
        found[key] |= {"q10": low, "q50": middle, "q90": high}
    return found
