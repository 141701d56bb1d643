"""A checkpoint's config.json as lerobot's config of its policy type."""

from pathlib import Path
from typing import Any

import draccus
from lerobot.configs import PreTrainedConfig

from vivace.policies.checkpoint.manifest import read_manifest
from vivace.policies.errors import PolicyNotFound, in_one_line
from vivace.policies.plugins import register_plugins
from vivace.policies.registry import Registry

ACCELERATED = "vivace"
"""Type of a checkpoint that runs another one's policy, its base, under a plan; see `deploy.lerobot`."""
BASE = "base"
"""Where its config.json keeps the base's."""


def read_config(folder: Path, device: str, types: Registry) -> PreTrainedConfig:
    """Read config.json; of an accelerated checkpoint that of its base, whose files lie beside it too.

    Args:
        folder: of the checkpoint.
        device: where the policy is going to run.
        types: policy types with an adapter, whose module also registers a type that lerobot lacks.

    Raises:
        PolicyNotFound: the file is damaged, foreign, older or newer than what is read, or its policy type
            is unknown.
    """
    file = folder / "config.json"
    data = base_settings(read_manifest(file))
    kind = data.get("type")
    import lerobot.policies  # noqa: F401  registers lerobot's own types

    register_plugins()
    if isinstance(kind, str):
        types.find(kind)
    known = PreTrainedConfig.get_known_choices()
    if not isinstance(kind, str) or kind not in known:
        raise PolicyNotFound(f"{file} {_foreign(data, sorted({*known, *types.names()}))}")
    try:
        config = decode(data)
    except Exception as error:  # draccus raises many kinds for a foreign field or value
        raise PolicyNotFound(f"{file} is not a config of lerobot 0.6: {in_one_line(error)}") from error
    config.device = device
    return config


def base_settings(data: dict[str, Any]) -> dict[str, Any]:
    """What describes the policy itself in the settings of config.json."""
    base = data.get(BASE) if data.get("type") == ACCELERATED else None
    return base if isinstance(base, dict) else data


def decode(settings: dict[str, Any]) -> Any:
    """Build the config of a known policy type from the settings of config.json, as lerobot does."""
    kind = PreTrainedConfig.get_choice_class(settings["type"])
    with draccus.config_type("json"):
        return draccus.decode(kind, {name: value for name, value in settings.items() if name != "type"})


def _foreign(data: dict[str, Any], known: list[str]) -> str:
    """What is said of a config whose policy type is not known."""
    if "type" in data:
        return (
            f"has policy type {data['type']!r}; known types: {', '.join(known)}; a plug-in's: pip install "
            "lerobot_policy_…, or --policy.discover_packages_path=<its package>"
        )
    if "input_shapes" in data:
        return (
            "is of lerobot before 2025 (input_shapes, no policy type); take a newer revision of it, "
            "or save it again with the lerobot it was made by"
        )
    if data.get("model_type") == "openvla" or "vla" in data:
        return "is an original project's; make a checkpoint of it: vivace convert --run=…"
    return f"has no policy type, so it is not lerobot's; known types: {', '.join(known)}"
