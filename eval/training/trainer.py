"""Train a Diffusion Policy denoiser on arrays of demonstrations; needs torch and safetensors only.

Loss: E_{t, eps} || eps - eps_theta(sqrt(abar_t) a + sqrt(1 - abar_t) eps, t, o) ||^2 (2303.04137, eq. 5),
with AdamW, linear warm-up and cosine decay, and an exponential moving average of the weights
(rate 1 - (1 + step)^-power, at most `ema_max`), as in the original project.
Interrupted training resumes from its last checkpoint, to the same random stream.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vivace.policies.files import replacing
from vivace.policies.placement import Placement, read_device


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long and how fast to learn."""

    steps: int = 6000
    """Optimiser steps."""
    device: str = "cpu"
    """Where it learns: cpu, cuda, cuda:1; batches are made on the host and sent there."""
    batch_size: int = 128
    """Demonstrated moments of a step."""
    lr: float = 3e-4
    """Largest learning rate; it falls to 0 as a cosine."""
    warmup: int = 200
    """Steps of linear warm-up."""
    ema_power: float = 0.75
    """How fast the moving average of the weights, which is what is kept, becomes slow."""
    ema_max: float = 0.9999
    """Largest share of it that a step leaves."""
    seed: int = 0
    """Of the first weights, the batches and the noise."""
    bf16: bool = False
    """Autocast the forward pass to bfloat16: about three times faster on processors that have it."""
    compile: bool = False
    """Compile the loss with torch.compile: minutes to compile, then about 1.4 times as fast on a CPU."""
    save_every: int = 200
    """Steps between resumable checkpoints."""


class Batches(Protocol):
    """What training draws its batches from."""

    def __len__(self) -> int:
        """Rows there are."""

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Observations {key: (B, ...)} and actions (B, H, A) of the given rows."""


class Windows:
    """Windows of observations and actions cut from episodes, padded by repetition at both ends.

    Window i holds observations [i - To + 1, i] and actions [i - To + 1, i - To + H], as the original
    project pads To - 1 before an episode and repeats its last action after it.
    """

    def __init__(
        self,
        observations: dict[str, np.ndarray],
        actions: np.ndarray,
        episodes: np.ndarray,
        n_obs_steps: int,
        horizon: int,
    ):
        ends = np.r_[np.flatnonzero(np.diff(episodes)) + 1, len(episodes)]
        starts = np.r_[0, ends[:-1]]
        first = np.repeat(starts, ends - starts)[:, None]
        last = np.repeat(ends - 1, ends - starts)[:, None]
        now = np.arange(len(episodes))[:, None]
        to_index = np.clip(now + np.arange(1 - n_obs_steps, 1), first, last)
        action_index = np.clip(now + np.arange(1 - n_obs_steps, 1 - n_obs_steps + horizon), first, last)
        self._observation_index, self._action_index = (
            torch.from_numpy(to_index),
            torch.from_numpy(action_index),
        )
        self._observations = {key: torch.from_numpy(value) for key, value in observations.items()}
        self._actions = torch.from_numpy(actions)

    def __len__(self) -> int:
        return len(self._action_index)

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Observations {key: (B, To, ...)} and actions (B, H, A) of the given windows."""
        seen = {key: value[self._observation_index[rows]] for key, value in self._observations.items()}
        return seen, self._actions[self._action_index[rows]]


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Learning rate at a step: linear warm-up, then cosine to zero."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train[Model: nn.Module](
    model: Model,
    loss_fn: Callable[[Model, Model, dict[str, Tensor], Tensor], Tensor],
    groups: list[dict],
    windows: Batches,
    settings: TrainSettings,
    checkpoint: Path,
) -> Iterator[tuple[int, float, Model]]:
    """Train `model` in place; yield (steps done, loss, averaged model) after every step.

    Args:
        model: the network.
        loss_fn: (model, averaged model, observations, actions) -> scalar loss; draws its own noise from
            torch's generator.
        groups: the optimiser's parameter groups of `model`.
        windows: normalised training windows.
        settings: how long and how fast.
        checkpoint: where the resumable state lives; read when it exists, rewritten every `save_every` steps.
    """
    device = read_device(settings.device)
    model.to(device)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
    torch.manual_seed(settings.seed)
    done = _resume(checkpoint, settings, model, averaged, optimiser)
    if done >= settings.steps:
        yield done, math.nan, averaged
    if settings.compile:
        loss_fn = torch.compile(loss_fn, dynamic=False)
    model.train()
    there = Placement(device)
    for step in range(done, settings.steps):
        rows = torch.randint(len(windows), (settings.batch_size,))
        seen, actions = windows.batch(rows)
        seen = {key: there.move(value) for key, value in seen.items()}
        with precision(device.type, settings.bf16):
            loss = loss_fn(model, averaged, seen, there.move(actions))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimiser.step()
        _average(averaged, model, min(settings.ema_max, 1 - (1 + step) ** -settings.ema_power))
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(checkpoint, step + 1, settings, model, averaged, optimiser)
        yield step + 1, loss.item(), averaged


@contextmanager
def precision(device: str, is_bf16: bool) -> Iterator[None]:
    """Autocast to bfloat16, if asked for, with plain attention: torch's fused one is slow there on a CPU."""
    if not is_bf16:
        yield
        return
    with torch.autocast(device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def _save(path: Path, done: int, settings: TrainSettings, model, averaged, optimiser) -> None:
    state = {
        "done": done,
        "settings": asdict(settings),
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "device_random": torch.cuda.get_rng_state_all(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        torch.save(state, unfinished)


def _resume(path: Path, settings: TrainSettings, model, averaged, optimiser) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    if len(state.get("device_random", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state.get("device_random", ()))
    return state["done"]
