"""How many torch threads a training step is computed with: measured, as chunks are in `eval.measure`."""

import copy
from functools import partial

import numpy as np
import torch

from vivace.eval.measure.threads import thread_counts, use_fastest
from vivace.eval.measure.timing import Rounds, interleaved
from vivace.eval.terminal import console
from vivace.eval.training.recipe import Recipe
from vivace.eval.training.trainer import TrainSettings, precision
from vivace.policies.placement import read_device

_ROUNDS = Rounds(repeats=3, limit_s=10.0)


def settle_threads(recipe: Recipe, settings: TrainSettings, asked: int | None) -> None:
    """Use as many threads from now on as are asked for, else as a step is fastest with; says which.

    What is measured leaves no trace: it is done to a copy, and random numbers go on where they were. Sums of
    other numbers of threads differ in the last bits.
    """
    counts = thread_counts()
    if asked or len(counts) == 1 or read_device(settings.device).type != "cpu":
        torch.set_num_threads(asked or torch.get_num_threads())
        return
    with torch.random.fork_rng(), console.status("measuring how many threads are best"):
        model = copy.deepcopy(recipe.model).train()
        step = partial(_step, recipe, settings, model)
        times = interleaved({str(n): partial(step, n) for n in counts}, _ROUNDS)
    use_fastest({n: float(np.median(times[str(n)])) for n in counts}, "a step forward and back")


def _step(recipe: Recipe, settings: TrainSettings, model: torch.nn.Module, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    seen, actions = recipe.windows.batch(torch.arange(settings.batch_size) % len(recipe.windows))
    with precision("cpu", settings.bf16):
        recipe.loss(model, model, seen, actions).backward()
    model.zero_grad(set_to_none=True)
