"""What a policy needs besides its folder: packages, and what it names by a place on the Hub."""

from collections.abc import Mapping
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

from vivace.policies.errors import in_one_line


def not_installed(kind: str, error: ImportError) -> str:
    """What is said where a package is missing that a policy type needs: lerobot's extra, if there is one."""
    extras = metadata("lerobot").get_all("Provides-Extra") or []
    names = (kind.replace("_", "-"), kind.replace("_", ""), kind.rstrip("0123456789"), kind.partition("_")[0])
    extra = next((name for name in names if name in extras), None)
    install = f'pip install "lerobot[{extra}]=={version("lerobot")}"' if extra else "install it"
    return f"policy type {kind!r} needs what is not installed ({in_one_line(error)}); {install}"


def out_of_reach(settings: Mapping[str, Any], error: BaseException) -> str:
    """What is said where an encoder or a tokenizer cannot be had that settings name on the Hub."""
    named = {
        name: value
        for name, value in settings.items()
        if isinstance(value, str) and value.count("/") == 1 and not Path(value).exists()
    }
    what = ", ".join(f"{name}={value}" for name, value in named.items()) or "a file"
    fetch = next(iter(named.values()), "<name>")
    return (
        f"it needs {what}, which cannot be had ({in_one_line(error, 160)}); get it once with a network and "
        f"without HF_HUB_OFFLINE: hf download {fetch}, or write the path of a folder in its place"
    )
