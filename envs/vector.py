"""Episodes stepped together in one process, so that one policy call serves all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np

from vivace.policies.backports import Self
from vivace.policies.errors import BadSetting


@dataclass(frozen=True)
class BatchStep:
    """What n episodes show after one tick."""

    observations: dict[str, np.ndarray]
    """Key -> (n, ...)."""
    is_success: np.ndarray
    """(n,) bool, the task is done now."""
    is_over: np.ndarray
    """(n,) bool, the episode has ended: it is not stepped any more and shows its last observation."""


class EpisodeBatch:
    """n environments of one kind; each episode depends on its own seed and actions only."""

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]], size: int) -> None:
        """Make the environments.

        Args:
            make_env: makes one environment.
            size: how many episodes can run together.

        Raises:
            BadSetting: `size` is not positive.
        """
        if size < 1:
            raise BadSetting(f"batch size is {size}; at least 1 is needed")
        self._envs = [make_env() for _ in range(size)]
        self._running: list[gymnasium.Env[Any, Any]] = []
        self._latest: list[dict[str, np.ndarray]] = []
        self._is_success = np.zeros(0, bool)
        self._is_over = np.zeros(0, bool)

    @property
    def envs(self) -> tuple[gymnasium.Env[Any, Any], ...]:
        """The environments, in the order of the batch."""
        return tuple(self._envs)

    def reset(self, seeds: Sequence[int]) -> BatchStep:
        """Begin one episode per seed; at most as many as there are environments.

        Raises:
            BadSetting: there are no seeds, or more than environments.
        """
        if not 1 <= len(seeds) <= len(self._envs):
            raise BadSetting(
                f"there are {len(seeds)} seeds for {len(self._envs)} environments; give 1 seed each at most"
            )
        self._running = self._envs[: len(seeds)]
        self._latest = [env.reset(seed=seed)[0] for env, seed in zip(self._running, seeds, strict=True)]
        self._is_success = np.zeros(len(seeds), bool)
        self._is_over = np.zeros(len(seeds), bool)
        return self._shown()

    def step(self, actions: np.ndarray) -> BatchStep:
        """Advance every episode that is not over by one tick.

        Args:
            actions: (n, A), a row for each episode; rows of episodes that are over are ignored.
        """
        for i in np.flatnonzero(~self._is_over):
            observation, _, terminated, truncated, info = self._running[i].step(actions[i])
            self._latest[i] = observation
            self._is_success[i] = info["is_success"]
            self._is_over[i] = terminated or truncated
        return self._shown()

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _shown(self) -> BatchStep:
        stacked = {key: np.stack([values[key] for values in self._latest]) for key in self._latest[0]}
        return BatchStep(stacked, self._is_success.copy(), self._is_over.copy())
