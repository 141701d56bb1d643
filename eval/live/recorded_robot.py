"""A robot that is past: recorded episodes, played back to a policy that acts as if it were there.

Each tick shows the next recorded moment, whatever was commanded; what is commanded is compared with what was
recorded. So a bundle is tried on the data of its own robot, in real time, without the robot or a simulator.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vivace.eval.options import DataOptions
from vivace.eval.recordings.recording import Episodes, Recording
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Observation, PolicySpec


class RecordedRobot:
    """Plays recorded episodes back, one moment an action.

    Args:
        recording: the episodes.
        episodes: numbers of those to play; a reset's seed chooses among them.
        spec: of the policy that looks.
        control_hz: control rate [Hz].
        instruction: what it is told; what was recorded when empty.
    """

    is_simulated = True

    def __init__(
        self,
        recording: Recording,
        episodes: Sequence[int],
        spec: PolicySpec,
        control_hz: float,
        instruction: str = "",
    ) -> None:
        self._recording, self._choice, self._spec = recording, tuple(episodes), spec
        self._period_s, self._instruction = 1.0 / control_hz, instruction
        self.action_names = recording.action_names or None
        self._told: list[np.ndarray] = []
        self._recorded: list[np.ndarray] = []
        self._played: list[int] = []
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin the episode that a seed chooses."""
        self._episode = self._choice[seed % len(self._choice)]
        self._opened: Episodes = self._recording.read([self._episode], self._spec.observation_shapes, 1)
        self._actions = self._opened.actions(self._episode)
        if self._actions is not None and self._actions.shape[1] != self._spec.action_dim:
            raise BadSetting(
                f"actions of {self._recording.name} have {self._actions.shape[1]} numbers, the policy's "
                f"{self._spec.action_dim}; play back data of the robot it was trained for"
            )
        self.initial_action = None if self._actions is None else self._actions[0].tolist()
        self._tick, self.is_over = 0, False
        self._seen = self._look()

    def observe(self) -> Observation:
        """Return the recorded moment that it is now."""
        return self._seen

    def act(self, action: np.ndarray) -> None:
        """Note what is commanded beside what was recorded, and go on to the next moment."""
        if self.is_over:
            return
        if self._actions is not None:
            self._told.append(np.array(action, np.float32))
            self._recorded.append(self._actions[self._tick])
        if not self._tick:
            self._played.append(self._episode)
        self._tick += 1
        self.is_over = self._tick >= self._opened.length(self._episode)
        if not self.is_over:
            self._seen = self._look()

    @property
    def measured(self) -> dict[str, Any]:
        """How far what was commanded is from what was recorded, in the robot's units.

        Returns:
            "recording", "episodes" that were played, "actions" that were compared and, if there are any,
            "difference": name of a dimension -> "mean" and "largest" absolute difference, and "spread", the
            standard deviation of what was recorded.
        """
        found = {
            "recording": self._recording.name,
            "episodes": self._played,
            "actions": len(self._told),
            "difference": {},
        }
        if self._told:
            recorded = np.stack(self._recorded)
            distance = np.abs(np.stack(self._told) - recorded)
            names = self.action_names or tuple(map(str, range(self._spec.action_dim)))
            rows = zip(names, distance.mean(0), distance.max(0), recorded.std(0), strict=True)
            found["difference"] = {
                name: {"mean": float(mean), "largest": float(largest), "spread": float(spread)}
                for name, mean, largest, spread in rows
            }
        return found

    def _look(self) -> Observation:
        moment = self._opened.moment(self._episode, self._tick)
        task = self._instruction or moment["task"]
        values = {key: moment[key][-1] for key in self._spec.observation_shapes}
        return Observation(values, self._tick, self._tick * self._period_s, task)


def dataset(
    spec: PolicySpec,
    control_hz: float,
    instruction: str = "",
    repo: str = "",
    file: str = "",
    episodes: Sequence[int] = (),
) -> RecordedRobot:
    """Make a robot of recorded episodes.

    Args:
        spec: of the policy.
        control_hz: control rate [Hz].
        instruction: what it is told; what was recorded when empty.
        repo: LeRobotDataset, its folder or its name on the Hub.
        file: .npz of observations, in the place of a dataset.
        episodes: numbers of those to play; all when empty.

    Raises:
        BadSetting: there is no such recording or episode, or it was recorded at another rate.
    """
    recording = DataOptions(repo=repo, file=file, episodes=list(episodes)).recording
    if recording is None:
        raise BadSetting("robot 'dataset' needs --robot.options='{repo: DATASET}' or '{file: obs.npz}'")
    if unknown := sorted(set(episodes) - set(recording.episodes)):
        raise BadSetting(
            f"{recording.name} has no episode {unknown[0]}; the last is {recording.episodes[-1]}"
        )
    if recording.control_hz not in (None, control_hz):
        raise BadSetting(
            f"{recording.name} was recorded at {recording.control_hz:g} Hz and would be played back at "
            f"{control_hz:g}; give --control_hz={recording.control_hz:g}"
        )
    return RecordedRobot(recording, episodes or recording.episodes, spec, control_hz, instruction)
