"""The observations a command names, to fit plans to or to judge them on: recorded, of a world, or made up.

--data.repo, --data.file   moments of recorded episodes
--env.type, --env.task     what the policy meets in a frozen world; also where the plan beside the
                           checkpoint was calibrated in one
nothing                    made up from the policy's shapes, and every output says so
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vivace.accel.technique import CalibrationData
from vivace.eval.observations.gather import CALIBRATION_SEED, JUDGEMENT_SEED, calibration_data
from vivace.eval.observations.recorded import recorded_data
from vivace.eval.observations.shapes import made_up
from vivace.eval.options import CommonOptions
from vivace.eval.recordings.recording import Recording, halves
from vivace.eval.subject import env_maker, session
from vivace.eval.terminal import console
from vivace.policies.batch import join, take
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution, eagerly
from vivace.policies.load import LoadedPolicy


def observe(
    command: CommonOptions,
    loaded: LoadedPolicy,
    execution: Execution | None = None,
    seed: int = CALIBRATION_SEED,
    samples: int | None = None,
) -> CalibrationData:
    """Return observations as a command wants them; its `CalibrationData.source` says where they are from.

    Args:
        command: names where they are from, and how many episodes and observations plans are fitted to and
            judged on.
        loaded: the policy.
        execution: how it acts meanwhile in a world; as trained when not given.
        seed: of the first episode: `CALIBRATION_SEED` to fit on, `JUDGEMENT_SEED` to judge on.
        samples: how many, of one episode each at least, where the command's number is not meant.

    Returns:
        The observations in an order in which any first few are from all over tasks and episodes.
    """
    accel = command.accel
    wanted = (accel.episodes, accel.samples)
    if seed == JUDGEMENT_SEED:
        wanted = (accel.judged_episodes, accel.judged_samples)
    if samples is not None:
        wanted = (min(wanted[0], samples), samples)
    for name, n in zip(("episodes", "observations"), wanted, strict=True):
        if n < 1:
            raise BadSetting(f"{n} {name} were asked for to look at; 1 or more are needed")
    recording = command.data.recording
    eager = None if execution is None else eagerly(execution)  # several episodes at once
    if recording is not None:
        return _recorded(command, loaded, eager, recording, seed, *wanted)
    if command.env.is_named:
        return _seen(command, loaded, eager, seed, *wanted)
    return made_up(session(command, loaded, eager), wanted[1], seed)


def some(data: CalibrationData, rows: range) -> CalibrationData:
    """Return some of the observations; the first few of what `observe` returns are from all over them."""
    return replace(
        data,
        batch=take(data.batch, list(rows)),
        noise_keys=data.noise_keys[rows.start : rows.stop],
        draft=None if data.draft is None else data.draft[rows.start : rows.stop],
        raw={key: value[rows.start : rows.stop] for key, value in data.raw.items()},
    )


def _recorded(
    command: CommonOptions,
    loaded: LoadedPolicy,
    execution: Execution | None,
    recording: Recording,
    seed: int,
    episodes: int,
    samples: int,
) -> CalibrationData:
    """Moments of recorded episodes, of one half to fit on and of the other to judge on."""
    data = command.data
    half = halves(recording, data.episodes, data.seed)[seed == JUDGEMENT_SEED]
    with console.status(f"reading observations of {recording.name}"):
        return recorded_data(
            session(command, loaded, execution),
            recording,
            half[:episodes],
            samples,
            seed + data.seed,
            command.env.instruction,
        )


def _seen(
    command: CommonOptions,
    loaded: LoadedPolicy,
    execution: Execution | None,
    seed: int,
    episodes: int,
    samples: int,
) -> CalibrationData:
    """What the policy meets in all the command's tasks, the world frozen."""
    tasks = command.env.tasks
    episodes, samples = (math.ceil(n / len(tasks)) for n in (episodes, samples))
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
    joined = _shuffled(parts, seed)
    n, of = len(joined.noise_keys), len(joined.seeds)
    return replace(joined, source=f"{n} of {of} episodes of {command.env.named}, seeds from {seed} on")


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
