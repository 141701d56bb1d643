"""Observations of all of a command's tasks, to fit plans to or to judge them on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vivace.accel.technique import CalibrationData
from vivace.eval.observations.gather import CALIBRATION_SEED, JUDGEMENT_SEED, calibration_data
from vivace.eval.options import CommonOptions
from vivace.eval.subject import env_maker, session
from vivace.eval.terminal import console
from vivace.policies.batch import join, take
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy


def observe(
    command: CommonOptions,
    loaded: LoadedPolicy,
    execution: Execution | None = None,
    seed: int = CALIBRATION_SEED,
    samples: int | None = None,
) -> CalibrationData:
    """Observations of all the command's tasks, the world frozen, actions by an execution.

    Args:
        command: names tasks, and how many episodes and observations plans are fitted to and judged on.
        loaded: the policy.
        execution: how it acts meanwhile; as trained when not given.
        seed: of the first episode: `CALIBRATION_SEED` to fit on, `JUDGEMENT_SEED` to judge on.
        samples: how many, of one episode each at least, where the command's number is not meant.

    Returns:
        The observations in an order in which any first few are from all over tasks and episodes.
    """
    accel, tasks = command.accel, command.env.tasks
    wanted = (accel.episodes, accel.samples)
    if seed == JUDGEMENT_SEED:
        wanted = (accel.judged_episodes, accel.judged_samples)
    if samples is not None:
        wanted = (min(wanted[0], samples), samples)
    for name, n in zip(("episodes", "observations"), wanted, strict=True):
        if n < 1:
            raise BadSetting(f"{n} {name} were asked for to look at; 1 or more are needed")
    episodes, samples = (math.ceil(n / len(tasks)) for n in wanted)
    parts = []
    with console.status(f"collecting observations from seed {seed} on (frozen world)"):
        for i, task in enumerate(tasks):
            parts.append(
                calibration_data(
                    session(command, loaded, execution, task),
                    env_maker(command, loaded.staged.spec, task),
                    episodes,
                    samples,
                    seed + 1000 * i,
                    command.env.max_steps,
                )
            )
    return _shuffled(parts, seed)


def _shuffled(parts: Sequence[CalibrationData], seed: int) -> CalibrationData:
    """Join the observations of all tasks, in an order that a seed gives."""
    keys = [key for part in parts for key in part.noise_keys]
    order = np.random.default_rng(seed).permutation(len(keys))
    batch = take(join([part.batch for part in parts]), order.tolist())
    drafts = [part.draft for part in parts if part.draft is not None]
    raw: dict[str, Any] = {
        key: np.concatenate([part.raw[key] for part in parts])[order] for key in parts[0].raw
    }
    draft = torch.cat(drafts)[order] if drafts else None
    steps = [part.largest_step for part in parts if part.largest_step is not None]
    largest_step = np.max(steps, axis=0) if steps else None
    return CalibrationData(batch, tuple(keys[i] for i in order), draft, raw, largest_step)
