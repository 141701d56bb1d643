"""Adapters of `peft` (LoRA and its kin): few weights on top of a base policy's, merged when it is loaded.

adapter_config.json          {"base_model_name_or_path": folder or name on the Hub, "revision", …}
adapter_model.safetensors
config.json, policy_*        the policy's own, as lerobot's training writes them beside
"""

import warnings
from pathlib import Path
from typing import Any

from vivace.policies.checkpoint.find import ADAPTER, INDEX, WEIGHTS, resolve
from vivace.policies.checkpoint.manifest import read_manifest
from vivace.policies.errors import PolicyNotFound, in_one_line

_ADAPTED = "adapter_model.safetensors"


def has_adapter(folder: Path, uses_peft: bool = False) -> bool:
    """Whether a folder holds an adapter and not a whole policy; where both are there, its config says it."""
    is_whole = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    return (folder / ADAPTER).is_file() and (uses_peft or not is_whole)


def base_of(folder: Path) -> Path:
    """Return the folder of the policy that an adapter was trained on.

    Raises:
        PolicyNotFound: the adapter does not name it, it cannot be found, or it is an adapter itself.
    """
    described = read_manifest(folder / ADAPTER)
    name, revision = described.get("base_model_name_or_path"), described.get("revision")
    if not isinstance(name, str) or not name:
        raise PolicyNotFound(
            f"{folder / ADAPTER} does not name the policy that the adapter was trained on; write its folder "
            "or its name on the Hub into base_model_name_or_path"
        )
    try:
        base = resolve(f"{name}@{revision}" if revision and not Path(name).exists() else name)
    except PolicyNotFound as error:
        raise PolicyNotFound(
            f"{folder} is an adapter of {name}: {error}; or write where it is into "
            f"base_model_name_or_path of {ADAPTER}"
        ) from error
    if has_adapter(base):
        raise PolicyNotFound(f"{folder} is an adapter of {base}, an adapter itself; merge that one first")
    return base


def merge(folder: Path, policy: Any) -> Any:
    """Return a policy with an adapter's weights added to its own.

    Raises:
        PolicyNotFound: `peft` is not installed, or the adapter is damaged or another policy's.
    """
    file = folder / _ADAPTED
    if not file.is_file():
        raise PolicyNotFound(f"{folder} has no {_ADAPTED}, which belongs to its {ADAPTER}; copy it too")
    try:
        from peft import PeftConfig, PeftModel

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            settings = PeftConfig.from_pretrained(str(folder))
            wrapped = PeftModel.from_pretrained(policy, str(folder), config=settings)
            unread = [name for name in wrapped.load_adapter(str(folder), "default").unexpected_keys]
            merged = wrapped.merge_and_unload(safe_merge=True)
    except ImportError as error:
        raise PolicyNotFound(f"{folder} is an adapter, which needs pip install peft ({error})") from error
    except Exception as error:  # peft raises many kinds for an adapter of another policy
        raise PolicyNotFound(f"{folder}: {_ADAPTED} does not fit its base: {in_one_line(error)}") from error
    missing = next((str(it.message) for it in said if "missing adapter keys" in str(it.message)), "")
    if unread or missing:
        said_of = missing[:300] or f"{unread[0]!r} has no place in it"
        raise PolicyNotFound(f"{folder}: {_ADAPTED} does not fit its base: {said_of}")
    return merged
