"""A checkpoint of type `vivace`: another one's policy, its base, with a plan, as lerobot's commands take it.

config.json                  type vivace, the base's own nested (`VivaceConfig`)
*.safetensors                the base's, linked: a weight is on the disk once
acceleration.json            the plan, and acceleration.safetensors if it has tensors
policy_preprocessor.json …   and whatever else the base has beside them, copied
"""

import os
import shutil
from pathlib import Path

from vivace.accel.apply import accelerate
from vivace.accel.plan import FILE_NAME, TENSORS_SUFFIX, AccelerationPlan
from vivace.deploy.lerobot.chunks import drops_in
from vivace.deploy.lerobot.configuration_vivace import VivaceConfig
from vivace.policies.checkpoint.config import base_settings
from vivace.policies.checkpoint.manifest import read_manifest
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.files import replacing
from vivace.policies.load import LoadedPolicy
from vivace.policies.spec import ChunkExecution

_CONFIG, _PREPROCESSOR = "config.json", "policy_preprocessor.json"
_LEFT = {
    _CONFIG,
    FILE_NAME,
    Path(FILE_NAME).with_suffix(TENSORS_SUFFIX).name,
    "README.md",
    "train_config.json",
    "training.pt",
}
"""What is written anew, or is about how the base came about."""
_BY_CLASS = ("groot", "evo1", "xvla")
"""Types whose processors lerobot 0.6.1 joins together by their config's class: `policies/factory.py` of the
first two, `envs/factory.py`, which lerobot-eval asks, of xvla."""
LINKED = ".safetensors"
HARD, SYMBOLIC, COPIED = "hard links", "symbolic links", "copies"


def check_target(target: Path) -> None:
    """Raise `BadSetting` if there is something already where a checkpoint is to be written."""
    if target.exists() or target.is_symlink():
        raise BadSetting(
            f"{target} is there already; give a folder that is not, or remove it: nothing is overwritten"
        )


def check_base(loaded: LoadedPolicy) -> None:
    """Raise `UnsupportedPolicy` if a policy cannot be run under a plan by lerobot's own commands."""
    kind = loaded.policy.config.type
    if kind in _BY_CLASS:
        raise UnsupportedPolicy(
            f"lerobot joins the processors of {kind!r} together by their type, so a checkpoint of another "
            "would lose them; leave its plan beside its own checkpoint: lerobot with our plug-in runs it so"
        )
    if not drops_in(loaded.staged):
        raise UnsupportedPolicy(
            f"policy {kind!r} does not come apart, so there is nothing to accelerate; "
            "lerobot runs it as it is"
        )


def write(loaded: LoadedPolicy, plan: AccelerationPlan, target: Path, copies: bool = False) -> str:
    """Write a policy with a plan as a checkpoint folder for lerobot; it is there whole or not at all.

    Args:
        loaded: the policy.
        plan: made for it.
        target: the folder; nothing may be there.
        copies: whether weights may be copied where they cannot be linked.

    Returns:
        How the weights are there: one of `HARD`, `SYMBOLIC`, `COPIED`.

    Raises:
        BadSetting: something is there already, or cannot be written, or linked.
        PlanMismatch: the plan is another policy's.
        UnsupportedPolicy: lerobot cannot run it under a plan.
    """
    check_target(target)
    check_base(loaded)
    accelerate(loaded.staged, plan, loaded.fingerprint)  # raises unless it fits
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as folder:
            folder.mkdir()
            ways = {way for entry in sorted(loaded.path.iterdir()) if (way := _bring(entry, folder, copies))}
            if not (folder / _PREPROCESSOR).is_file():  # of lerobot before 0.4, its statistics in its weights
                loaded.preprocess.save_pretrained(folder)  # type: ignore[attr-defined]
                loaded.postprocess.save_pretrained(folder)  # type: ignore[attr-defined]
            _config(loaded.path, plan.execution)._save_pretrained(folder)
            plan.save(folder)
    except OSError as error:
        raise BadSetting(f"{target} cannot be written ({error.strerror}); give another folder") from error
    return next(way for way in (COPIED, SYMBOLIC, HARD) if way in ways)


def _config(base: Path, execution: ChunkExecution) -> VivaceConfig:
    settings = base_settings(read_manifest(base / _CONFIG))
    return VivaceConfig(base=settings, device=settings.get("device"), n_action_steps=execution.n_action_steps)


def _bring(entry: Path, folder: Path, copies: bool) -> str:
    """Bring a file or a folder of the base's into a new folder; returns how, if it is of weights."""
    if entry.name in _LEFT:
        return ""
    if entry.is_dir():
        shutil.copytree(entry, folder / entry.name)
        return ""
    if entry.suffix != LINKED or not _is_weights(entry):
        shutil.copy2(entry, folder / entry.name)
        return ""
    return _link(entry.resolve(), folder / entry.name, copies)


def _is_weights(file: Path) -> bool:
    """Whether a file of tensors is the policy's, not a processor's, which may be small and be changed."""
    return not file.name.startswith("policy_")


def _link(source: Path, target: Path, copies: bool) -> str:
    """Let a file be at another place too."""
    for way, link in ((HARD, os.link), (SYMBOLIC, os.symlink)):
        try:
            link(source, target)
        except OSError:  # of another disk, or of a system that has none
            continue
        return way
    if not copies:
        raise BadSetting(
            f"{source} can be linked to {target.parent.parent} neither way; give a folder on the same disk, "
            "or --copy=true"
        )
    shutil.copy2(source, target)
    return COPIED
