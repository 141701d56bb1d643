"""A published architecture with random weights as a loaded policy: what it costs can be measured, no more."""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import MISSING, Field, field, fields, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import lerobot.policies  # noqa: F401  registers lerobot's own types
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_policy_config, make_pre_post_processors

from vivace.policies.dtype import cast_weights
from vivace.policies.errors import BadSetting, in_one_line
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.placement import read_device, read_dtype
from vivace.policies.published.architecture import ARCHITECTURES, Architecture, plain_statistics
from vivace.policies.published.tokenizer import instead_of_the_hub
from vivace.policies.published.weights import check_fits, fill, without_weights

_TRAINING = ("optimizer_", "scheduler_")
_EXECUTED = "n_action_steps"
"""Said by how the loop executes chunks, of every policy."""
_PLAIN = (int, float, bool, str, NoneType)
_SEED = 0


def published(kind: str) -> Architecture:
    """Return what is published of a policy type; raises `BadSetting` naming the known ones."""
    found: Architecture | None = ARCHITECTURES.find(kind)
    if found is None:
        raise BadSetting(
            f"policy.type={kind!r} has no published size here; known: {', '.join(ARCHITECTURES.names())}"
        )
    return found


def options(kind: str) -> type:
    """Return a dataclass of what can be chosen of a published architecture, as it was published by default.

    That is how many cameras there are, and the fields of lerobot's config class that hold numbers and words.
    """
    architecture, config_class = published(kind), _config_class(kind)
    inherited = {f.name for f in fields(PreTrainedConfig)} - {"n_obs_steps"}
    types = get_type_hints(config_class)
    chosen: list[tuple[str, Any, Any]] = [("cameras", int, field(default=len(architecture.cameras)))]
    for one in fields(config_class):
        is_other = one.name in inherited or one.name == _EXECUTED or one.name.startswith(_TRAINING)
        if is_other or not _is_plain(types[one.name]):
            continue
        chosen.append((one.name, types[one.name], _default(one, architecture.settings)))
    return make_dataclass(f"{kind}_options", chosen, kw_only=True)


def build_published(
    kind: str, chosen: Mapping[str, Any] | None = None, device: str = "cpu", dtype: str = ""
) -> LoadedPolicy:
    """Build a published architecture with random weights, and lerobot's processors around it.

    Nothing is read from the Hub: what a type would fetch is written down in its file, and tokenizers are
    stand-ins. Statistics are such that normalising changes nothing.

    Args:
        kind: lerobot's policy type.
        chosen: fields of its config that are not as published, and "cameras", how many there are.
        device: where it runs.
        dtype: float32, bfloat16 or float16; of a type whose config has a dtype it is that, so that lerobot
            itself keeps in float32 what it always does. As the type's own default when empty.

    Raises:
        BadSetting: there is no such type, device or dtype, a setting does not fit, or the weights do not fit
            the memory, which is known before any is taken (but for `Architecture.runs_when_built`).
    """
    architecture, place = published(kind), read_device(device)
    wanted = read_dtype(dtype) if dtype else None
    chosen = dict(chosen or {})
    settings = {**architecture.features(chosen.pop("cameras", None)), **architecture.settings, **chosen}
    defaults = {one.name: one.default for one in fields(_config_class(kind))}
    if "chunk_size" in settings:
        settings.setdefault(_EXECUTED, min(defaults[_EXECUTED], settings["chunk_size"]))
    has_own_dtype = "dtype" in defaults
    if wanted is not None and has_own_dtype:
        settings["dtype"] = dtype
    with tempfile.TemporaryDirectory(prefix=f"vivace-{kind}-") as name, instead_of_the_hub():
        folder = Path(name)
        try:
            written = architecture.write(folder)
            config: Any = make_policy_config(kind, **{**settings, **written}, device=device)
            config.device = None  # no class is to move what is not there yet
            making = nullcontext() if architecture.runs_when_built else without_weights()
            with making, redirect_stdout(sys.stderr):  # some of lerobot's classes print
                policy = architecture.build(config).eval()
        except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
            raise BadSetting(
                f"policy.type={kind} does not take these settings: {in_one_line(error)}"
            ) from error
        if wanted is not None and not has_own_dtype:
            cast_weights(policy, wanted)
        check_fits(policy, kind, place)
        fill(policy, place, _SEED)
        config.device = device
        features = {**config.input_features, **config.output_features}
        pipelines = make_pre_post_processors(config, dataset_stats=plain_statistics(features))
        architecture.ready(pipelines[0], folder)
        for one in (config, *pipelines[0].steps, *pipelines[1].steps):
            _forget(folder, one)
    staged = stage(policy, preprocess=pipelines[0])
    mark = fingerprint(policy, staged.spec.block_ids, pipelines)
    return LoadedPolicy(Path(f"random-{kind}"), policy, staged, pipelines[0], pipelines[1], mark)


def _forget(folder: Path, settings: Any) -> None:
    """Let settings that name a folder which is there for now name it as it would be named every time.

    A fingerprint holds them, and a plan is to fit what is built of the same numbers again.
    """
    for name, value in vars(settings).items():
        if isinstance(value, str) and value.startswith(str(folder)):
            setattr(settings, name, f"published{value.removeprefix(str(folder))}")


def told(kind: str, loaded: LoadedPolicy) -> str:
    """Say what was built, for tables."""
    millions = sum(parameter.numel() for parameter in loaded.policy.parameters()) / 1e6
    return (
        f"random weights: {kind} as published ({published(kind).source}), {millions:.0f} million parameters "
        f"in {loaded.dtype}, nothing learned; tokenizers are stand-ins"
    )


def _config_class(kind: str) -> Any:
    return PreTrainedConfig.get_choice_class(kind)


def _is_plain(kind: Any) -> bool:
    """Whether a field's type is a number, a word, or a tuple or list of them, or none."""
    if get_origin(kind) in (Union, UnionType, tuple, list):
        return all(_is_plain(one) for one in get_args(kind) if one is not Ellipsis)
    return kind in _PLAIN


def _default(one: "Field[Any]", settings: Mapping[str, Any]) -> Any:
    """A field with its published default."""
    value = settings.get(one.name, one.default)
    if value is MISSING:
        return field(default_factory=one.default_factory)  # type: ignore[arg-type]
    return field(default=value)
