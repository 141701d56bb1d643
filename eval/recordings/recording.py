"""What recorded episodes are to those who read them, and which of them a plan is fitted to or judged on.

Calibration and judgement never share an episode: the episodes are put in an order that a seed gives, the
first half is there to fit to, the second to judge on, whatever number of them is asked for. So a plan that
was calibrated by one command is judged by another on episodes it has not seen, as long as the seed is one.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vivace.policies.errors import BadSetting, ObservationMismatch

_FIRST_MARK = 1 << 40
"""Marks of recorded episodes are above it: the seeds of simulated ones are below."""


class Episodes(Protocol):
    """Some of the episodes of a recording, opened."""

    def length(self, episode: int) -> int:
        """Return how many moments an episode has."""

    def moment(self, episode: int, index: int) -> dict[str, Any]:
        """Return what a policy sees at a moment of an episode.

        Returns:
            Key -> (observations in time, ...), newest last, those before the episode repeating its first;
            images HWC uint8. Under "task" the instruction then, "" if there was none.
        """

    def actions(self, episode: int) -> "np.ndarray | None":
        """Return the actions of an episode (length, A) float32; None if none were recorded."""

    def mark(self, episode: int) -> int:
        """Return what names an episode wherever it is stored: a number made of what was recorded."""


class Recording(Protocol):
    """Recorded episodes."""

    name: str
    """Where they are, as the user gave it."""
    control_hz: "float | None"
    """Rate they were recorded at [Hz]; None if that is not said."""
    action_names: tuple[str, ...]
    """Names of the dimensions of an action; empty if they have none."""
    names_in_training: tuple[str, ...]
    """What lerobot's training takes for those names: the groups', where they are listed by group."""
    instructions: tuple[str, ...]
    """What the robot was told, each text once."""
    episodes: tuple[int, ...]
    """Their numbers, ascending."""
    moment_name: str
    """What one moment is called, such as "frame"."""
    observations: tuple[str, ...]
    """Names of those that can be read: numbers, and pictures of cameras."""
    statistics: Mapping[str, Mapping[str, Any]]
    """lerobot's, by feature and name, under the recording's names; empty if it has none."""

    def read(self, episodes: Sequence[int], shapes: Mapping[str, tuple[int, ...]], steps: int) -> Episodes:
        """Open some episodes.

        Args:
            episodes: which.
            shapes: key -> shape of one observation, of what is wanted; images channels first.
            steps: observations in time, one control period apart.

        Raises:
            ObservationMismatch: a key is missing, or has another shape.
            BadSetting: they cannot be read.
        """


def halves(recording: Recording, chosen: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Return the episodes that plans are fitted to, and those they are judged on, in the order of a seed.

    Args:
        recording: the episodes.
        chosen: numbers of those that may be taken; all when empty.
        seed: of the order.

    Raises:
        BadSetting: one is named that is not there, or there are fewer than two.
    """
    unknown = sorted(set(chosen) - set(recording.episodes))
    if unknown:
        raise BadSetting(
            f"data.episodes names episode {unknown[0]}; {recording.name} has {len(recording.episodes)}, from "
            f"{recording.episodes[0]} to {recording.episodes[-1]}"
        )
    known = sorted(set(chosen or recording.episodes))
    if len(known) < 2:
        raise BadSetting(
            f"{recording.name} gives {len(known)} episode, and what a plan is fitted to it is not judged on; "
            "2 or more are needed: record another, or take more by --data.episodes"
        )
    order = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    return order[: len(order) // 2], order[len(order) // 2 :]


def episode_mark(arrays: Iterable[np.ndarray]) -> int:
    """Make the mark of an episode from what was recorded in it, below 2**41."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return _FIRST_MARK + int.from_bytes(found.digest()[:5], "big")


def check_known(key: str, recording: str, has: Iterable[str]) -> None:
    """Raise `ObservationMismatch` unless a recording has a key.

    Args:
        key: of an observation that the policy needs.
        recording: its name.
        has: keys that it has.
    """
    known = sorted(has)
    if key not in known:
        raise ObservationMismatch(
            f"{recording} has {', '.join(known)}, but the policy needs {key!r}; say which of them it is: "
            f"--rename_map='{{NAME: {key}}}'"
        )


def check_shape(key: str, recording: str, found: Sequence[int], needed: Sequence[int]) -> None:
    """Raise `ObservationMismatch` unless one observation of numbers has the shape that a policy needs."""
    if tuple(found) != tuple(needed):
        raise ObservationMismatch(
            f"{key!r} of {recording} has shape {tuple(found)}, the policy needs {tuple(needed)}; give data "
            "of the robot it was trained for, or say which feature is meant: --rename_map"
        )
