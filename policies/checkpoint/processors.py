"""A checkpoint's processors: lerobot's pipelines before and after the policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import ProcessorStepRegistry, RenameObservationsProcessorStep
from safetensors import SafetensorError

from vivace.policies.checkpoint.inside import paths
from vivace.policies.checkpoint.manifest import PIPELINES, processor_steps
from vivace.policies.checkpoint.needs import out_of_reach
from vivace.policies.errors import PolicyNotFound, in_one_line


def load_processors(
    folder: Path,
    config: PreTrainedConfig,
    statistics: Mapping[str, Any],
    rename_map: Mapping[str, str] | None = None,
    lent: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Build the pipelines of a checkpoint, on the config's device.

    Args:
        folder: of the checkpoint.
        config: of the policy.
        statistics: what an earlier lerobot kept among the weights, by feature; used where no files of
            pipelines are there.
        rename_map: names of observations outside -> the policy's; as the files say when not given.
        lent: statistics in the place of the checkpoint's, which has none; when empty nothing is normalised.

    Raises:
        PolicyNotFound: the files are missing, damaged, or of steps that are not installed.
    """
    lacking = [name for name in PIPELINES if not (folder / name).is_file()]
    if lacking and not statistics and lent is None:
        raise PolicyNotFound(
            f"{folder} lacks {' and '.join(lacking)}, without which nothing is normalised; copy them too, or "
            "write them with the statistics of the dataset: lerobot's make_pre_post_processors(config, "
            "dataset_stats=dataset.meta.stats), then save_pretrained of both"
        )
    steps = tuple(processor_steps(folder / name) for name in PIPELINES) if not lacking else ()
    try:
        if lacking:
            pipelines = make_pre_post_processors(config, dataset_stats=dict(statistics or lent or {}))
        else:
            inside = _inside(folder, steps[0])
            told, after = _overrides(steps[0], config.device) | inside, {}
            if lent:
                told |= {"normalizer_processor": _normalising(config, lent, config.input_features)}
                after = {"unnormalizer_processor": _normalising(config, lent, {})}
                if getattr(config, "use_relative_actions", False):
                    told |= {"relative_actions_processor": _relative(config)}
                    after |= {"absolute_actions_processor": {"enabled": True}}
            pipelines = make_pre_post_processors(
                config, str(folder), preprocessor_overrides=told, postprocessor_overrides=after
            )
            _name_as_written(steps[0], pipelines[0], inside)
    except ImportError as error:
        raise PolicyNotFound(f"{folder}: {_not_installed(steps, error)}") from error
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        if isinstance(error.__cause__, OSError | ImportError):  # of a tokenizer that a step makes
            raise PolicyNotFound(f"{folder}: {_cannot_be_made(steps, error.__cause__)}") from error
        raise PolicyNotFound(
            f"{folder} lacks usable processor files ({', '.join(PIPELINES)}): {in_one_line(error)}"
        ) from error
    if rename_map:
        _rename(folder, pipelines[0], rename_map)
    return pipelines


def _rename(folder: Path, preprocess: Any, rename_map: Mapping[str, str]) -> None:
    """Let a preprocessor rename as the user says instead of as the checkpoint does."""
    for step in preprocess.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            step.rename_map = dict(rename_map)
            return
    raise PolicyNotFound(
        f"{folder}: its preprocessor has no step that renames observations, so --rename_map has no meaning; "
        "rename them where they come from"
    )


def _overrides(steps: list[dict[str, Any]], device: Any) -> dict[str, dict[str, Any]]:
    """Settings of the preprocessor's steps that differ from the files': where it computes, if it says."""
    wanted = {"device_processor": {"device": device}}
    there = {step.get("registry_name") for step in steps}
    return {name: settings for name, settings in wanted.items() if name in there}


def _normalising(
    config: PreTrainedConfig, statistics: Mapping[str, Any], seen: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a step that normalises by other statistics, as lerobot's training gives them to a base."""
    features = {**seen, **config.output_features}
    return {"stats": dict(statistics), "features": features, "norm_map": config.normalization_mapping}


def _relative(config: Any) -> dict[str, Any]:
    """Settings of the step that makes actions relative, as lerobot's training gives them to a base."""
    names, still = config.action_feature_names, config.relative_exclude_joints
    return {"enabled": True, "exclude_joints": still, "action_names": names}


def _inside(folder: Path, steps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings of the preprocessor's steps that name folders of the checkpoint, as paths."""
    found = {str(step.get("registry_name")): paths(folder, step.get("config") or {}) for step in steps}
    return {name: settings for name, settings in found.items() if settings}


def _name_as_written(written: list[dict[str, Any]], preprocess: Any, inside: Mapping[str, Any]) -> None:
    """Let the steps that were built of folders of the checkpoint name them as its files do."""
    for step, made in zip(written, preprocess.steps, strict=True):
        for setting in inside.get(str(step.get("registry_name")), ()):
            setattr(made, setting, step["config"][setting])


def _cannot_be_made(pipelines: tuple[list[dict[str, Any]], ...], error: BaseException) -> str:
    """What is said where a step lacks what it names or needs."""
    if isinstance(error, ImportError):
        return f"a processor step needs what is not installed ({in_one_line(error)})"
    named: dict[str, Any] = {}
    for step in (step for steps in pipelines for step in steps):
        named |= step.get("config") or {}
    return f"its processors: {out_of_reach(named, error)}"


def _not_installed(pipelines: tuple[list[dict[str, Any]], ...], error: ImportError) -> str:
    """What is said where a step cannot be imported."""
    known = set(ProcessorStepRegistry.list())
    names = {
        str(step.get("registry_name")) for steps in pipelines for step in steps if "registry_name" in step
    }
    unknown = sorted(names - known)
    if not unknown:
        return _cannot_be_made(pipelines, error)
    return (
        f"its processors have the step {unknown[0]!r}, which no installed package offers; install the one it "
        "is from, and name it if it is no lerobot_policy_…: --policy.discover_packages_path=<package>"
    )
