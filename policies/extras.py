"""What to install when an import fails: packages that only some verbs need come with extras of this one."""

import sys

from vivace.policies.errors import in_one_line

EXTRAS = {
    **dict.fromkeys(("numpy", "onnxruntime", "typing_extensions"), ""),
    **dict.fromkeys(("draccus", "rich", "yaml"), "run"),
    **dict.fromkeys(
        ("torch", "torchvision", "lerobot", "safetensors", "timm", "tokenizers", "psutil"), "torch"
    ),
    **dict.fromkeys(("transformers", "diffusers", "peft", "huggingface_hub", "httpx"), "torch"),
    **dict.fromkeys(("gymnasium", "metaworld", "mujoco"), "sim"),
    **dict.fromkeys(("plotly", "scipy", "imageio", "imageio_ffmpeg", "optuna"), "measure"),
    **dict.fromkeys(("PIL", "datasets", "pyarrow"), "torch"),
    **dict.fromkeys(("onnx", "onnxscript", "onnx_ir"), "export"),
    "rerun": "rerun",
    "ray": "ray",
    "cryptography": "sign",
    **dict.fromkeys(("rclpy", "rcl_interfaces", "sensor_msgs", "geometry_msgs", "trajectory_msgs"), "ros"),
    **dict.fromkeys(("std_msgs", "std_srvs", "diagnostic_msgs", "lifecycle_msgs"), "ros"),
}
"""Package, by the name it is imported by -> extra that installs it; "" is needed always."""
_IN_ALL = ("torch", "measure", "sim", "export")


def how_to_install(error: ImportError) -> str:
    """Say in a line what an import that failed needs; empty if it is our own mistake."""
    package = (error.name or "").partition(".")[0]
    if not package:
        text = in_one_line(error)  # lerobot's own say what to install
        return text if "install" in text else ""
    if package == "vivace":
        return ""
    if not isinstance(error, ModuleNotFoundError):
        return f"the package {package!r} of {sys.executable} cannot be used ({error}); {_command(package)}"
    return f"no package {package!r} in {sys.executable}; {_command(package)}"


def _command(package: str) -> str:
    extra = EXTRAS.get(package)
    if extra is None:
        return f"install it, e.g. pip install {package}"
    more = ", or 'vivace[all]' for every verb; Python 3.12 or newer" if extra in _IN_ALL else ""
    return f"pip install 'vivace{f'[{extra}]' if extra else ''}'{more}"
