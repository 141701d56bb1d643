"""A checkpoint of an original project as one of lerobot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from vivace.policies.errors import BadSetting
from vivace.policies.families.cogact import original as cogact_original
from vivace.policies.families.originals import read_json
from vivace.policies.families.token_vla import original as openvla_original
from vivace.policies.files import replacing
from vivace.policies.vla.vla import VisionLanguageConfig, make_vla_processors


def convert(
    run: Path,
    output: Path,
    tokenizer: Path,
    unnorm_key: str | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> VisionLanguageConfig:
    """Write an original checkpoint as a lerobot checkpoint folder, whole or not at all; returns its config.

    Args:
        run: the original folder.
        output: folder to make.
        tokenizer: the language model's tokenizer.json.
        unnorm_key: dataset whose statistics bring actions back to the robot's units.
        architecture: fields of the policy's config that the folder does not tell.

    Raises:
        PolicyNotFound: the folder is incomplete or damaged.
        BadSetting: `unnorm_key` or the tokenizer is unknown, or `output` exists.
    """
    if output.exists():
        raise BadSetting(f"{output} exists already; give another output_dir or remove it")
    try:
        text = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises Exception itself
        raise BadSetting(f"{tokenizer} is not a tokenizer.json ({error})") from error
    original = _layout(read_json(run / "config.json")).read(run, unnorm_key, architecture)
    pre, post = make_vla_processors(original.config, {"action": original.statistics}, text)
    weights = {name: tensor.contiguous() for name, tensor in original.weights.items()}
    with replacing(output) as folder:
        folder.mkdir(parents=True)
        original.config._save_pretrained(folder)
        save_file(weights, folder / "model.safetensors")
        pre.save_pretrained(folder)
        post.save_pretrained(folder)
    return original.config


def _layout(described: Mapping[str, Any]) -> Any:
    """Return the module that reads a folder with such a config.json."""
    return openvla_original if described.get("model_type") == "openvla" else cogact_original
