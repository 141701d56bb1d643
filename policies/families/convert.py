"""A checkpoint of an original project as one of lerobot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from vivace.policies.errors import BadSetting
from vivace.policies.families.cogact import original as cogact_original
from vivace.policies.families.dp_transformer import original as dp_original
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.families.originals import Original, read_json
from vivace.policies.families.token_vla import original as openvla_original
from vivace.policies.files import replacing
from vivace.policies.vla.vla import make_vla_processors


def convert(
    run: Path,
    output: Path,
    tokenizer: Path | None = None,
    unnorm_key: str | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Any:
    """Write an original checkpoint as a lerobot checkpoint folder, whole or not at all; returns its config.

    Args:
        run: the original folder, or Diffusion Policy's `.ckpt`.
        output: folder to make.
        tokenizer: the language model's tokenizer.json; of Diffusion Policy none.
        unnorm_key: dataset whose statistics bring actions back to the robot's units.
        architecture: fields of the policy's config that the folder does not tell.

    Raises:
        PolicyNotFound: the folder is incomplete or damaged, or holds weights that are not read.
        BadSetting: `unnorm_key` or the tokenizer is unknown, or `output` exists.
    """
    if output.exists():
        raise BadSetting(f"{output} exists already; give another output_dir or remove it")
    if dp_original.find(run) is not None:
        original = dp_original.read(run, unnorm_key, architecture)
        pre, post = make_dp_transformer_pre_post_processors(original.config, original.statistics)
    else:
        text = _tokenizer(tokenizer)
        original = _layout(read_json(run / "config.json")).read(run, unnorm_key, architecture)
        pre, post = make_vla_processors(original.config, original.statistics, text)
    _save(original, pre, post, output)
    return original.config


def _tokenizer(file: Path | None) -> Tokenizer:
    if file is None:
        raise BadSetting("a tokenizer is needed: --tokenizer=<tokenizer.json of the language model>")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        raise BadSetting(f"{file} is not a tokenizer.json ({error})") from error


def _layout(described: Mapping[str, Any]) -> Any:
    """Return the module that reads a folder with such a config.json."""
    return openvla_original if described.get("model_type") == "openvla" else cogact_original


def _save(original: Original, pre: Any, post: Any, output: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in original.weights.items()}
    with replacing(output) as folder:
        folder.mkdir(parents=True)
        original.config._save_pretrained(folder)
        save_file(weights, folder / "model.safetensors")
        pre.save_pretrained(folder)
        post.save_pretrained(folder)
