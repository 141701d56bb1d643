"""What a policy sees over a handful of episodes in a frozen world, to fit plans to or to judge them on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.eval.simulation.rollout import RolloutSettings, rollout
from vivace.policies.session import Session
from vivace.policies.spec import PREVIOUS, PolicySpec

MakeEnv = Callable[[], Any]
CALIBRATION_SEED = 1_000_000
"""Seeds from here on are for calibration: no plan is judged on what it was calibrated on."""
JUDGEMENT_SEED = 2_000_000
"""Seeds from here on are for the observations plans are timed on and compared by."""


NoiseKey = tuple[int, ...]
"""An episode's seed, and which of its inferences."""


def observe_episodes(
    session: Session, make_env: MakeEnv, episodes: int, seed: int, max_steps: int | None = None
) -> tuple[list[tuple[NoiseKey, dict[str, np.ndarray]]], np.ndarray]:
    """Run episodes side by side in a frozen world; keep what the policy was shown, and how far it stepped.

    Args:
        session: runs the policy.
        make_env: makes one environment.
        episodes: how many.
        seed: of the first episode; the following ones count up.
        max_steps: longest episode; the environment's own when None.

    Returns:
        One entry per inference of an episode: its noise key, and what was shown: key -> (To, ...), and what
        the chunk before means (H, A). And the largest change of the executed action between two ticks (A,).
    """
    seen: list[tuple[NoiseKey, dict[str, np.ndarray]]] = []

    def predict(observations: Mapping[str, np.ndarray], noise_keys: Sequence[tuple[int, ...]]) -> np.ndarray:
        shown = {key: observations[key] for key in session.spec.observation_shapes}
        shown[PREVIOUS] = _padded(observations.get(PREVIOUS), len(noise_keys), session.spec)
        seen.extend(
            (tuple(noise_key), {key: value[row] for key, value in shown.items()})
            for row, noise_key in enumerate(noise_keys)
        )
        return session.predict(observations, noise_keys)

    settings = RolloutSettings(n_episodes=episodes, batch_size=episodes, seed=seed, max_steps=max_steps)
    results = rollout(make_env, predict, session.spec, settings)
    actions = [np.array([record.action for record in result.records]) for result in results]
    steps = [np.abs(np.diff(one, axis=0)).max(axis=0, initial=0.0) for one in actions]
    return seen, np.max(steps, axis=0)


def calibration_data(
    session: Session,
    make_env: MakeEnv,
    episodes: int,
    samples: int,
    seed: int = CALIBRATION_SEED,
    max_steps: int | None = None,
) -> CalibrationData:
    """Pick `samples` observations, evenly spread over a handful of episodes; they keep their noise keys."""
    seen, largest_step = observe_episodes(session, make_env, episodes, seed, max_steps)
    picks = np.linspace(0, len(seen) - 1, min(samples, len(seen))).astype(int)
    keys, shown = zip(*(seen[i] for i in picks), strict=True)
    batch = {
        key: np.stack([one[key] for one in shown]) for key in (*session.spec.observation_shapes, PREVIOUS)
    }
    raw: dict[str, Any] = batch | {"task": [session.task] * len(picks)}
    inputs = session.inputs(raw)
    return CalibrationData(inputs.batch, keys, inputs.draft, raw, largest_step)


def _padded(previous: np.ndarray | None, rows: int, spec: PolicySpec) -> np.ndarray:
    """What the chunks before mean (rows, H, A), NaN where nothing is known."""
    padded = np.full((rows, spec.horizon, spec.action_dim), np.nan, np.float32)
    if previous is not None:
        n = min(spec.horizon, previous.shape[1])
        padded[:, :n] = previous[:, :n]
    return padded
