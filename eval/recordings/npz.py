"""Observations in a file that `numpy.savez` wrote, as recorded episodes.

    numpy.savez("obs.npz", **{
        "observation.state": state,            # (N, …) or (N, observations in time, …), numbers
        "observation.images.front": pictures,  # (N, [observations in time,] height, width, 3) uint8
        "task": tasks,                         # (N,) texts, where the policy reads one
        "episode": episode,                    # (N,) whole numbers: which episode a row is of
        "action": action,                      # (N, A): what was done then, where it is known
    })

Rows of an episode follow each other one control period apart if they are single observations and the policy
takes several. Without "episode" every row is an episode of its own.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vivace.eval.recordings.recording import check_known, check_shape, episode_mark
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting

EPISODE, TASK, ACTION = "episode", "task", "action"
_HOW = "numpy.savez(FILE, **{'observation.state': …, 'episode': …}) writes one"


class FileRecording:
    """A file of observations.

    Args:
        path: of the file.

    Raises:
        BadSetting: it is not there, damaged, holds pickled objects, or arrays of different lengths.
    """

    moment_name = "row"
    control_hz: float | None = None
    action_names: tuple[str, ...] = ()
    names_in_training: tuple[str, ...] = ()
    statistics: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, path: str) -> None:
        self.name, self._arrays = path, _read(path)
        n = len(next(iter(self._arrays.values())))
        self._episode = _whole(self._arrays.get(EPISODE, np.arange(n)), path)
        self._task = self._arrays.get(TASK, np.full(n, ""))
        if self._task.ndim != 1 or self._task.dtype.kind not in "US":
            raise BadSetting(f"'task' of {path} is {self._task.dtype}; one text a row is needed")
        self.episodes = tuple(np.unique(self._episode).tolist())
        self.instructions = tuple(dict.fromkeys(map(str, self._task)))
        self.observations = tuple(key for key in self._arrays if key.startswith("observation."))

    def read(
        self, episodes: Sequence[int], shapes: Mapping[str, tuple[int, ...]], steps: int
    ) -> "FileEpisodes":
        """Open some episodes; see `Recording.read`."""
        for key, shape in shapes.items():
            check_known(key, self.name, self._arrays)
            value = self._arrays[key]
            axes = 1 + len(shape)
            if value.ndim == axes and steps > 1 and EPISODE not in self._arrays:
                raise BadSetting(
                    f"{key!r} of {self.name} has one observation a row, the policy takes {steps}: give rows "
                    "(N, observations in time, …), or say by 'episode' which rows follow each other"
                )
            if value.ndim == axes + 1 and value.shape[1] != steps:
                check_shape(key, self.name, value.shape[1:], (steps, *shape))
            if value.ndim not in (axes, axes + 1):
                check_shape(key, self.name, value.shape[1:], shape)
            if not is_image(key):
                check_shape(key, self.name, value.shape[value.ndim - len(shape) :], shape)
        return FileEpisodes(self._arrays, self._episode, self._task, shapes, steps)


class FileEpisodes:
    """Episodes of a file of observations.

    Args:
        arrays: name -> one row an observation.
        episode: of each row (N,).
        task: of each row (N,).
        shapes: key -> shape of one observation.
        steps: observations in time.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        episode: np.ndarray,
        task: np.ndarray,
        shapes: Mapping[str, tuple[int, ...]],
        steps: int,
    ) -> None:
        self._arrays, self._episode, self._task = arrays, episode, task
        self._shapes, self._steps = shapes, steps

    def length(self, episode: int) -> int:
        """Return how many rows an episode has."""
        return len(self._rows(episode))

    def moment(self, episode: int, index: int) -> dict[str, Any]:
        """Return what a policy sees at a row; see `Episodes.moment`."""
        rows = self._rows(episode)
        found: dict[str, Any] = {"task": str(self._task[rows[index]])}
        window = rows[np.maximum(np.arange(index - self._steps + 1, index + 1), 0)]
        for key, shape in self._shapes.items():
            value = self._arrays[key]
            found[key] = value[window] if value.ndim == 1 + len(shape) else value[rows[index]]
        return found

    def actions(self, episode: int) -> np.ndarray | None:
        """Return the recorded actions of an episode; see `Episodes.actions`."""
        if ACTION not in self._arrays:
            return None
        rows = self._rows(episode)
        return self._arrays[ACTION][rows].astype(np.float32).reshape(len(rows), -1)

    def mark(self, episode: int) -> int:
        """Return the mark of an episode; see `Episodes.mark`."""
        rows = self._rows(episode)
        return episode_mark(self._arrays[key][rows] for key in sorted(self._shapes))

    def _rows(self, episode: int) -> np.ndarray:
        return np.flatnonzero(self._episode == episode)


def _read(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise BadSetting(f"there is no file of observations at {path}; {_HOW}")
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("it is one array without a name")
        with opened:
            arrays = {name: opened[name] for name in opened.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, BadZipFile, zlib.error) as error:
        raise BadSetting(
            f"{path} is damaged, holds objects, or is no .npz ({' '.join(str(error).split())}); {_HOW}"
        ) from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not lengths or len(set(lengths.values())) > 1 or 0 in lengths.values():
        told = ", ".join(f"{name} {n}" for name, n in lengths.items()) or "nothing"
        raise BadSetting(f"{path} holds arrays of these lengths: {told}; as many rows of each are needed")
    return arrays


def _whole(episode: np.ndarray, path: str) -> np.ndarray:
    if episode.ndim != 1 or episode.dtype.kind not in "iu":
        raise BadSetting(f"'episode' of {path} is {episode.dtype}; one whole number a row is needed")
    return episode
