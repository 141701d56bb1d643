"""Observations drawn from recorded episodes: moments at random, as many of each episode as of another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.eval.recordings.recording import Episodes, Recording
from vivace.policies.errors import ObservationMismatch
from vivace.policies.session import Session
from vivace.policies.spec import PREVIOUS, PolicySpec
from vivace.policies.staged import writes_tokens

Moment = tuple[int, int]
"""An episode, and which of its moments."""


def recorded_data(
    session: Session,
    recording: Recording,
    episodes: Sequence[int],
    samples: int,
    seed: int,
    instruction: str = "",
) -> CalibrationData:
    """Draw observations from some episodes; each has the noise key (mark of its episode, moment).

    What the chunk before means is left unknown, unless it matters: a policy that writes tokens drafts by it,
    and real-time chunking continues it. Then it is what the policy itself predicts from the moment at which
    that chunk would have been asked for, `n_action_steps` earlier. The recorded actions are not taken for
    it: they know what the policy would have to guess.

    Args:
        session: runs the policy.
        recording: recorded episodes.
        episodes: numbers of those to draw from.
        samples: how many observations.
        seed: decides which.
        instruction: what the policy is told; what was recorded when empty.

    Raises:
        ObservationMismatch: the recording does not fit the policy.
    """
    spec = session.spec
    opened = recording.read(episodes, spec.observation_shapes, spec.n_obs_steps)
    moments = _drawn(opened, episodes, samples, np.random.default_rng(seed))
    shown = _shown(opened, moments, spec, instruction)
    raw = shown | {PREVIOUS: np.full((len(moments), spec.horizon, spec.action_dim), np.nan, np.float32)}
    marks = {episode: opened.mark(episode) for episode in episodes}
    if session.chunking is not None or writes_tokens(session.execution.policy):
        _fill(raw[PREVIOUS], session, opened, moments, marks, instruction)
    inputs = session.inputs(raw)
    n, of = len(moments), len({episode for episode, _ in moments})
    source = f"{_counted(n, recording.moment_name)} of {_counted(of, 'episode')} of {recording.name}"
    keys = tuple((marks[episode], index) for episode, index in moments)
    largest = _largest_step(opened, episodes, recording, spec)
    return CalibrationData(inputs.batch, keys, inputs.draft, raw, largest, source)


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _drawn(
    opened: Episodes, episodes: Sequence[int], samples: int, random: np.random.Generator
) -> list[Moment]:
    """Moments at random; any first few of them are from all over the episodes."""
    orders = {episode: random.permutation(opened.length(episode)).tolist() for episode in episodes}
    longest = max(map(len, orders.values()))
    rounds = [
        (episode, orders[episode][i])
        for i in range(longest)
        for episode in episodes
        if i < len(orders[episode])
    ]
    return rounds[:samples]


def _shown(opened: Episodes, moments: Sequence[Moment], spec: PolicySpec, instruction: str) -> dict[str, Any]:
    """What the policy is shown at some moments: key -> (B, To, ...), and "task"."""
    found = [opened.moment(*moment) for moment in moments]
    shown: dict[str, Any] = {key: np.stack([one[key] for one in found]) for key in spec.observation_shapes}
    return shown | {"task": [instruction or one["task"] for one in found]}


def _fill(
    previous: np.ndarray,
    session: Session,
    opened: Episodes,
    moments: Sequence[Moment],
    marks: Mapping[int, int],
    instruction: str,
) -> None:
    """Write into (B, H, A) what the chunks before mean, of the moments that have one before."""
    spec = session.spec
    rows = [row for row, (_, index) in enumerate(moments) if index >= spec.n_action_steps]
    if not rows:
        return
    before = [(moments[row][0], moments[row][1] - spec.n_action_steps) for row in rows]
    keys = [(marks[episode], index) for episode, index in before]
    chunks = session.predict(_shown(opened, before, spec, instruction), keys)[:, spec.n_action_steps :]
    previous[rows, : chunks.shape[1]] = chunks


def _largest_step(
    opened: Episodes, episodes: Sequence[int], recording: Recording, spec: PolicySpec
) -> np.ndarray | None:
    """Largest change of a recorded action between two moments (A,); None if none were recorded."""
    actions = [opened.actions(episode) for episode in episodes]
    known = [one for one in actions if one is not None]
    for one in known:
        if one.shape[1] != spec.action_dim:
            raise ObservationMismatch(
                f"actions of {recording.name} have {one.shape[1]} numbers, the policy's {spec.action_dim}; "
                "give data of the robot it was trained for"
            )
    if not any(len(one) > 1 for one in known):
        return None
    return np.max([np.abs(np.diff(one, axis=0)).max(axis=0) for one in known if len(one) > 1], axis=0)
