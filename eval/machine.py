"""What a measurement was taken on, and with which versions."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivace.policies.placement import Placement

_PACKAGES = (
    "vivace",
    "torch",
    "lerobot",
    "diffusers",
    "gymnasium",
    "metaworld",
    "mujoco",
    "numpy",
    "onnxruntime",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results; missing ones are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(placement: "Placement") -> dict[str, str | int]:
    """Describe the processor, its threads, and the device and dtype that a policy computes in."""
    import torch  # a robot that runs an exported policy may lack it, and wants the rest

    device = placement.device
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": str(placement.dtype).removeprefix("torch."),
    }


def command() -> str:
    """Return the command line that is running, as a user would type it."""
    return " ".join(["vivace", *sys.argv[1:]])


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
