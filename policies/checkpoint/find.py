"""Where a checkpoint is: a folder, a training run's, one of the zoo's, or a copy of one on the Hub."""

from importlib.util import find_spec
from pathlib import Path

from vivace.policies.checkpoint.hub import is_hub_name, snapshot
from vivace.policies.errors import PolicyNotFound

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A policy's weights, or what says in which other files they are."""
ADAPTER = "adapter_config.json"
_OF_A_RUN = ("pretrained_model", "last/pretrained_model", "checkpoints/last/pretrained_model")
"""Where lerobot's training keeps the policy, from the folders of one step, of all of them, and of the run."""
_OTHERS = {
    "meta/info.json": "is a LeRobotDataset; give the policy that learned from it",
    "manifest.json": "is a bundle of vivace export; give the checkpoint that it was made of",
    "checkpoints/latest.ckpt": "is Diffusion Policy's own; make a checkpoint of it: vivace convert --run=…",
    "dataset_statistics.json": "is an original project's; make a checkpoint of it: vivace convert --run=…",
    "pytorch_model.bin": "holds its weights as a pickle, which is never opened here; save them as "
    "model.safetensors where you trust it",
}
"""File -> what a folder with it and without a checkpoint's own files is."""


def _zoo() -> Path:
    """Folder of the trained checkpoints: beside the policies in a checkout, else where vivace-zoo put it."""
    beside = Path(__file__).parents[1] / "zoo"
    installed = None if beside.is_dir() else find_spec("vivace.zoo")
    return Path(next(iter(installed.submodule_search_locations or ()))) if installed else beside


ZOO = _zoo()
"""Trained checkpoints; the distribution vivace-zoo holds them."""


def resolve(path: str | Path) -> Path:
    """Find a checkpoint folder.

    Args:
        path: the folder, that of a training run or of one of its steps, `zoo/<name>`, or a name on the Hub
            such as `lerobot/diffusion_pusht` or `owner/name@revision`.

    Raises:
        PolicyNotFound: there is none, or it is something else; the message names the zoo's.
    """
    folder = Path(path)
    if folder.parts[:1] == ("zoo",) and not folder.exists():
        folder = ZOO.joinpath(*folder.parts[1:])
    elif not folder.exists() and is_hub_name(str(path)):
        folder = snapshot(str(path))
    if folder.is_file():
        raise PolicyNotFound(
            f"{path} is a file; give the folder of a lerobot checkpoint, or make one of it: vivace convert "
            f"--run={path}"
        )
    if not folder.is_dir():
        names = ", ".join(f"zoo/{config.parent.name}" for config in sorted(ZOO.glob("*/config.json")))
        ours = f"one of: {names}" if names else "install ours: pip install 'vivace[zoo]'"
        raise PolicyNotFound(
            f"no checkpoint folder at {path}; give a lerobot checkpoint, its name on the Hub, or {ours}"
        )
    inside = next((folder / name for name in _OF_A_RUN if (folder / name).is_dir()), folder)
    _check_files(inside)
    return inside


def _check_files(folder: Path) -> None:
    """Raise `PolicyNotFound` unless a folder holds what lerobot's `save_pretrained` writes."""
    there = {file.name for file in folder.iterdir() if file.is_file()}
    lacking = "config.json" if "config.json" not in there else WEIGHTS
    if lacking == WEIGHTS and there & {WEIGHTS, INDEX, ADAPTER}:
        return
    told = next((told for name, told in _OTHERS.items() if (folder / name).is_file()), None)
    if told is not None:
        raise PolicyNotFound(f"{folder} {told}")
    steps = sorted(step.parent.name for step in folder.glob("checkpoints/*/pretrained_model"))
    hint = f"; its steps: {', '.join(steps)}, give checkpoints/{steps[-1]}" if steps else ""
    raise PolicyNotFound(f"{folder} has no {lacking}; a lerobot checkpoint (save_pretrained) is needed{hint}")
