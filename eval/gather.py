"""Calibration observations: what a policy sees over a handful of episodes in a frozen world."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.eval.rollout import RolloutSettings, rollout
from vivace.policies.session import Session
from vivace.policies.types import PREVIOUS, PolicySpec

MakeEnv = Callable[[], Any]
CALIBRATION_SEED = 1_000_000
"""Seeds from here on are for calibration: no plan is judged on what it was calibrated on."""
JUDGEMENT_SEED = 2_000_000
"""Seeds from here on are for the observations plans are timed on and compared by."""


def observe_episodes(
    session: Session, make_env: MakeEnv, episodes: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Run episodes side by side in a frozen world and keep what the policy was shown at each inference.

    Args:
        session: runs the policy.
        make_env: makes one environment.
        episodes: how many.
        seed: of the first episode; the following ones count up.

    Returns:
        One entry per inference of an episode: key -> (To, ...), and what the chunk before means (H, A).
    """
    seen: list[dict[str, np.ndarray]] = []

    def predict(observations: Mapping[str, np.ndarray], noise_keys: Sequence[tuple[int, ...]]) -> np.ndarray:
        shown = {key: observations[key] for key in session.spec.observation_shapes}
        shown[PREVIOUS] = _padded(observations.get(PREVIOUS), len(noise_keys), session.spec)
        seen.extend({key: value[row] for key, value in shown.items()} for row in range(len(noise_keys)))
        return session.predict(observations, noise_keys)

    settings = RolloutSettings(n_episodes=episodes, batch_size=episodes, seed=seed)
    rollout(make_env, predict, session.spec, settings)
    return seen


def calibration_data(
    session: Session, make_env: MakeEnv, episodes: int, samples: int, seed: int = CALIBRATION_SEED
) -> CalibrationData:
    """Pick `samples` observations, evenly spread over a handful of episodes, as calibration data."""
    seen = observe_episodes(session, make_env, episodes, seed)
    picks = np.linspace(0, len(seen) - 1, min(samples, len(seen))).astype(int)
    batch = {
        key: np.stack([seen[i][key] for i in picks]) for key in (*session.spec.observation_shapes, PREVIOUS)
    }
    keys = tuple((seed, int(i)) for i in picks)
    raw: dict[str, Any] = batch | {"task": [session.task] * len(picks)}
    inputs = session.inputs(raw)
    return CalibrationData(inputs.batch, keys, inputs.draft, raw)


def _padded(previous: np.ndarray | None, rows: int, spec: PolicySpec) -> np.ndarray:
    """What the chunks before mean (rows, H, A), NaN where nothing is known."""
    padded = np.full((rows, spec.horizon, spec.action_dim), np.nan, np.float32)
    if previous is not None:
        n = min(spec.horizon, previous.shape[1])
        padded[:, :n] = previous[:, :n]
    return padded
