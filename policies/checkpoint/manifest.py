"""JSON files of a checkpoint, read strictly: they may come from anybody."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lerobot.processor import ProcessorStep

from vivace.policies.errors import BadSetting, PolicyNotFound, in_one_line
from vivace.policies.plain_data import check_plain, read_json, shown

PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")
"""lerobot's files of the processors before and after a policy."""


def read_manifest(file: Path) -> dict[str, Any]:
    """Read an object of plain data.

    Raises:
        PolicyNotFound: it is none, or holds NaN, or is nested too deeply.
    """
    try:
        found = read_json(file)
        check_plain(found, file.name)
    except BadSetting as error:
        raise PolicyNotFound(f"{file} is not a JSON object ({error}); restore the checkpoint") from error
    if not isinstance(found, dict):
        raise PolicyNotFound(f"{file} is not a JSON object but {shown(found)}; restore the checkpoint")
    return found


def processor_steps(file: Path) -> list[dict[str, Any]]:
    """Read the steps of a pipeline of lerobot's, and see that they are safe to build.

    lerobot imports a step's "class" and calls it with the settings beside it, whatever it is, and reads its
    "state_file" wherever that leads.

    Raises:
        PolicyNotFound: it is no pipeline, names what is no processor step, or a file outside its folder.
    """
    steps = read_manifest(file).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise PolicyNotFound(f"{file} has no list of steps; restore the checkpoint")
    for step in steps:
        state = step.get("state_file", "")
        if not isinstance(state, str) or Path(state).name != state:
            raise PolicyNotFound(
                f"{file} names the state file {shown(state)}; it has to lie beside it: restore the checkpoint"
            )
        if "registry_name" not in step:
            _check_class(file, step.get("class"))
    return [dict(step) for step in steps]


def _check_class(file: Path, place: Any) -> None:
    """Raise `PolicyNotFound` unless "package.module.Name" is a processor step that can be imported."""
    module, _, name = place.rpartition(".") if isinstance(place, str) else ("", "", "")
    try:
        found = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise PolicyNotFound(
            f"{file} has the step {shown(place)}, which cannot be imported ({in_one_line(error)}); install "
            "the package it is from"
        ) from error
    if not (isinstance(found, type) and issubclass(found, ProcessorStep)):
        raise PolicyNotFound(f"{file} has the step {shown(place)}, which is no processor step of lerobot's")
