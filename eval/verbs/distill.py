"""`vivace distill`: collect a teacher's Jacobi trajectories over demonstrations, and teach a student by them.

Trajectories are kept in `trajectories/` of the output folder, in files of a few hundred, each written whole;
an interrupted collection goes on with the files that are missing.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vivace.accel.techniques.jacobi import Jacobi
from vivace.envs.demonstrations import Demonstrations, load_demonstrations
from vivace.eval.measure.threads import choose_threads, restored_threads
from vivace.eval.terminal import progress
from vivace.eval.training.consistency import ConsistencySettings, consistency_loss, mixed_labels
from vivace.eval.training.recipe import Recipe
from vivace.eval.training.settings import DistillCommand
from vivace.eval.training.trainer import Batches
from vivace.eval.training.vla_recipe import demonstrated, present, tokenizer_of
from vivace.eval.verbs.train import fit
from vivace.policies.errors import BadSetting
from vivace.policies.families.token_vla.policy import TokenVLAPolicy
from vivace.policies.files import replacing
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.placement import read_device
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session

SHARD = 512
"""Trajectories of one file."""


@dataclass(frozen=True)
class Trajectories:
    """Jacobi trajectories over some rows of the demonstrations."""

    rows: Tensor
    """Which rows (N,)."""
    states: Tensor
    """All states of all trajectories, one after the other (M, n)."""
    first: Tensor
    """Index of each trajectory's first state, and M (N + 1,)."""


class TrajectoryBatches:
    """Demonstrated moments with a random state of their trajectory and its fixed point."""

    def __init__(self, windows: Batches, trajectories: Trajectories):
        self._windows, self._trajectories = windows, trajectories

    def __len__(self) -> int:
        return len(self._trajectories.rows)

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Observations with "trajectory.state" and "trajectory.answer" (B, n), and actions."""
        found = self._trajectories
        seen, actions = self._windows.batch(found.rows[rows])
        first, last = found.first[rows], found.first[rows + 1] - 1
        # the fixed point teaches nothing about getting there
        state = first + (torch.rand(len(rows)) * (last - first).clamp(min=1)).long()
        chosen = {"trajectory.state": found.states[state], "trajectory.answer": found.states[last]}
        return seen | {key: value.long() for key, value in chosen.items()}, actions


@restored_threads()
def run(command: DistillCommand) -> tuple[dict[str, Any], bool]:
    """Collect, teach, save."""
    options = command.distill
    if options.lora_rank:
        import_module("peft")  # better missed now than after the trajectories
    settings = ConsistencySettings(
        target=options.target, ar_weight=options.ar_weight, delta_max=options.delta_max
    )
    teacher = _load(command.teacher)
    choose_threads({"teacher": Session(teacher)}, command.threads)
    student = _load(command.student) if command.student else teacher
    check_same_tokens(teacher, student)
    demonstrations = Demonstrations.join([load_demonstrations(Path(path), True) for path in command.data])
    windows = demonstrated(demonstrations, teacher.policy, teacher.preprocess)
    if options.trajectories > len(windows):
        raise BadSetting(f"distill.trajectories={options.trajectories}, the data has {len(windows)} moments")
    output = Path(command.output_dir)
    rows = np.random.default_rng(command.train.seed).permutation(len(windows))[: options.trajectories]
    trajectories = collect(teacher, windows, rows, output / "trajectories", options.batch_size)
    torch.manual_seed(command.train.seed)
    teacher.policy.to(read_device(command.train.device))
    policy = copy.deepcopy(student.policy)
    if options.lora_rank:
        _add_adapters(policy, options.lora_rank)

    def loss(model: Any, averaged: Any, seen: dict[str, Tensor], actions: Tensor) -> Tensor:
        state, answer = (seen.pop(f"trajectory.{name}") for name in ("state", "answer"))
        target = {"self": None, "average": averaged, "teacher": teacher.policy}[settings.target]
        label = mixed_labels(model, answer, actions, settings.delta_max)
        return consistency_loss(model, present(model, seen), state, answer, label, settings, target)

    recipe = Recipe(
        model=policy,
        policy_of=_merged,
        loss=loss,
        groups=policy.get_optim_params(),
        windows=TrajectoryBatches(windows, trajectories),
        preprocess=student.preprocess,
        postprocess=student.postprocess,
    )
    done = fit(recipe, command.train, output, command.half)
    passes = (trajectories.first.diff() - 1).float().mean()
    return done | {
        "threads": torch.get_num_threads(),
        "trajectories": len(rows),
        "teacher_passes": round(float(passes), 2),
    }, True


def collect(
    teacher: LoadedPolicy, windows: Batches, rows: Sequence[int] | np.ndarray, folder: Path, batch_size: int
) -> Trajectories:
    """Collect the trajectories of some rows, or read those that are there.

    Raises:
        BadSetting: a file is damaged, or was made by another teacher or of other rows.
    """
    mark = teacher.fingerprint.weights
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with progress() as bars:
        bar = bars.add_task("collecting Jacobi trajectories", total=len(rows))
        for begin in range(0, len(rows), SHARD):
            some = torch.as_tensor(np.asarray(rows[begin : begin + SHARD]), dtype=torch.long)
            file = folder / f"{begin // SHARD:05d}.safetensors"
            if not file.is_file():
                _write(file, _decode(teacher, windows, some, batch_size), mark)
            parts.append(_read(file, some, mark))
            bars.update(bar, completed=min(begin + SHARD, len(rows)))
    lengths = torch.cat([part.first.diff() for part in parts])
    return Trajectories(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.states for part in parts]),
        torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
    )


@torch.inference_mode()
def _decode(teacher: LoadedPolicy, windows: Batches, rows: Tensor, batch_size: int) -> Trajectories:
    policy: Any = teacher.staged
    states, lengths = [], []
    for some in rows.split(batch_size):
        seen = present(teacher.policy, windows.batch(some)[0])
        prompt = policy.encode(seen)
        watched: list[Tensor] = []
        noise = EpisodeNoise([(int(row), 0) for row in some])
        found = Jacobi(freeze=False)(policy, prompt, noise, watch=watched.append)
        stacked = torch.stack(watched, dim=1)  # (B, passes + 1, n)
        for row, passes in enumerate(found.passes.tolist()):
            states.append(stacked[row, : passes + 1])
            lengths.append(passes + 1)
    first = torch.tensor([0, *lengths]).cumsum(0)
    return Trajectories(rows, torch.cat(states).int(), first)


def _write(file: Path, part: Trajectories, mark: str) -> None:
    tensors = {"rows": part.rows, "states": part.states, "first": part.first}
    with replacing(file) as path:
        save_file(tensors, path, metadata={"teacher": mark})


def _read(file: Path, rows: Tensor, mark: str) -> Trajectories:
    try:
        with safe_open(file, "pt") as tensors:
            made_by = (tensors.metadata() or {}).get("teacher")
            part = Trajectories(*(tensors.get_tensor(name) for name in ("rows", "states", "first")))
    except (SafetensorError, OSError) as error:
        raise BadSetting(
            f"{file} is truncated or no trajectory file ({error}); remove it and run again: only its "
            f"{len(rows)} trajectories are collected anew"
        ) from error
    if made_by != mark or not torch.equal(part.rows, rows):
        raise BadSetting(
            f"{file} holds trajectories of another teacher or of other data; give another output_dir"
        )
    return part


def check_same_tokens(teacher: LoadedPolicy, student: LoadedPolicy) -> None:
    """Raise `BadSetting` unless both write the same tokens for the same actions and read the same text."""
    for name in ("vocabulary_end", "n_action_bins", "horizon"):
        theirs, ours = getattr(teacher.policy.config, name), getattr(student.policy.config, name)
        if theirs != ours:
            raise BadSetting(f"teacher has {name}={theirs}, student {ours}; they must write the same tokens")
    if tokenizer_of(teacher.preprocess).to_str() != tokenizer_of(student.preprocess).to_str():
        raise BadSetting(
            "teacher and student have different tokenizers; a student reads its teacher's tokens"
        )


def _load(path: str) -> LoadedPolicy:
    loaded = load_policy(path)
    if not isinstance(loaded.policy, TokenVLAPolicy):
        raise BadSetting(
            f"{path} holds a policy of type {loaded.policy.config.type!r}; token_vla can be distilled"
        )
    return loaded


_ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _add_adapters(policy: TokenVLAPolicy, rank: int) -> None:
    """Freeze the policy but for low-rank adapters of its language model (LoRA, arXiv 2106.09685)."""
    from peft import LoraConfig, inject_adapter_in_model

    policy.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=max(1, rank // 2), target_modules=_ADAPTED)
    inject_adapter_in_model(config, policy.language)


@torch.no_grad()
def _merged(policy: TokenVLAPolicy) -> TokenVLAPolicy:
    """Return the policy without adapters, their product added to the weights."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(policy)
    for name, module in list(plain.language.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.language.get_submodule(parent), child, module.get_base_layer())
    return plain
