"""What a measurement was taken on, and with which versions."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivace.policies.placement import Placement

from vivace.deploy.system.realtime import allowed_cpus
from vivace.envs.registry import PACKAGES as SIMULATORS

_PACKAGES = (
    "vivace",
    "torch",
    "lerobot",
    "diffusers",
    "numpy",
    "onnxruntime",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results; missing ones are left out."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *SIMULATORS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(placement: "Placement", dtype: str = "") -> dict[str, str | int]:
    """Describe the processor, its cores, threads, and the device and dtype that a policy computes in.

    Args:
        placement: where the policy computes.
        dtype: of most of its weights, where that is known; otherwise the placement's.
    """
    import torch  # a robot that runs an exported policy may lack it, and wants the rest

    device = placement.device
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": dtype or str(placement.dtype).removeprefix("torch."),
    }


def commit() -> str | None:
    """Return the commit of the checkout that runs, with "+changes" if it has others; None of a wheel."""
    home = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        asked = ["git", "--no-optional-locks", "-C", str(home), *arguments]
        done = subprocess.run(
            asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != home:
            return None  # a wheel in somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """How many CPUs this process may use."""
    return len(allowed_cpus()) or os.cpu_count() or 1


def command() -> str:
    """Return the command line that is running, as a user would type it."""
    return shlex.join(["vivace", *sys.argv[1:]])


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
