"""Calibration observations: what a policy sees over a handful of episodes in a frozen world."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.policies.session import Session

MakeEnv = Callable[[], Any]
CALIBRATION_SEED = 1_000_000
"""Seeds from here on are for calibration: no plan is judged on what it was calibrated on."""


def observe_episodes(
    session: Session, make_env: MakeEnv, episodes: int, seed: int, max_steps: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Run episodes side by side in a frozen world and keep what the policy was shown at each inference.

    Args:
        session: runs the policy.
        make_env: makes one environment.
        episodes: how many.
        seed: of the first episode; the following ones count up.
        max_steps: end episodes early.

    Returns:
        One entry per inference of an episode: key -> (To, ...).
    """
    spec = session.spec
    envs = [make_env() for _ in range(episodes)]
    try:
        seen: list[dict[str, np.ndarray]] = []
        histories = [[env.reset(seed=seed + i)[0]] * spec.n_obs_steps for i, env in enumerate(envs)]
        running = list(range(episodes))
        steps = 0
        while running:
            stacked = [
                {k: np.stack([o[k] for o in histories[i]]) for k in spec.observation_shapes} for i in running
            ]
            seen += stacked
            batch = {k: np.stack([s[k] for s in stacked]) for k in spec.observation_shapes}
            chunks = session.predict(batch, [(seed + i, steps) for i in running])
            steps += spec.n_action_steps
            over = {
                i
                for i, chunk in zip(running, chunks, strict=True)
                if _execute(envs[i], histories, i, chunk, spec)
            }
            running = [i for i in running if i not in over and (max_steps is None or steps < max_steps)]
        return seen
    finally:
        for env in envs:
            env.close()


def _execute(env: Any, histories: list[list[Any]], i: int, chunk: np.ndarray, spec: Any) -> bool:
    for action in chunk[: spec.n_action_steps]:
        observation, _, terminated, truncated, info = env.step(action)
        histories[i] = [*histories[i][1:], observation]
        if terminated or truncated or info["is_success"]:
            return True
    return False


def calibration_data(
    session: Session, make_env: MakeEnv, episodes: int, samples: int, seed: int = CALIBRATION_SEED
) -> CalibrationData:
    """Pick `samples` observations, evenly spread over a handful of episodes, as calibration data."""
    seen = observe_episodes(session, make_env, episodes, seed)
    picks = np.linspace(0, len(seen) - 1, min(samples, len(seen))).astype(int)
    batch = {key: np.stack([seen[i][key] for i in picks]) for key in session.spec.observation_shapes}
    return CalibrationData(session.prepare(batch), tuple((seed, int(i)) for i in picks))
