"""Processors of the policy type `vivace` where none are beside its checkpoint: those of its base."""

from typing import Any

from lerobot.policies.factory import make_pre_post_processors

from vivace.deploy.lerobot.configuration_vivace import VivaceConfig


def make_vivace_pre_post_processors(
    config: VivaceConfig,
    dataset_stats: dict[str, dict[str, Any]] | None = None,
    dataset_meta: Any = None,
) -> tuple[Any, Any]:
    """Build the base's pipelines, by lerobot's own code; arguments are lerobot's."""
    return make_pre_post_processors(config.built, dataset_stats=dataset_stats, dataset_meta=dataset_meta)
