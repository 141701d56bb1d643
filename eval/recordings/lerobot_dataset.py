"""A LeRobotDataset (format v3.0) as recorded episodes, read by lerobot's own class."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.eval.recordings.recording import check_known, check_shape, episode_mark
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, VivaceError, in_one_line

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

ACTION = "action"
_INFO = Path("meta") / "info.json"


class DatasetRecording:
    """A LeRobotDataset by its folder, or by its name on the Hub.

    Args:
        repo: the folder, else the name; where a name is found is lerobot's business.

    Raises:
        BadSetting: it is not there, cannot be read or reached, or has another format.
    """

    moment_name = "frame"

    def __init__(self, repo: str) -> None:
        from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

        self.name, self._place = repo, _place(repo)
        with _one_line(repo):
            meta = LeRobotDatasetMetadata(**self._place)
            self.control_hz: float | None = float(meta.fps)
            named = meta.features.get(ACTION, {}).get("names")
            self.action_names = _names(named)
            self.names_in_training = tuple(map(str, named or ()))
            self.instructions = tuple(map(str, () if meta.tasks is None else meta.tasks.index))
            self.episodes = tuple(range(meta.total_episodes))
            self.statistics: Mapping[str, Mapping[str, Any]] = dict(meta.stats or {})
            self._shapes = {key: tuple(feature["shape"]) for key, feature in meta.features.items()}
            self._cameras, self._depth = set(meta.camera_keys), set(meta.depth_keys)
            self.observations = tuple(
                key for key in self._shapes if key.startswith("observation.") and key not in self._depth
            )
        if not self.episodes:
            raise BadSetting(f"{repo} has no episodes; give a dataset that was recorded")

    def read(
        self, episodes: Sequence[int], shapes: Mapping[str, tuple[int, ...]], steps: int
    ) -> "DatasetEpisodes":
        """Open some episodes; see `Recording.read`."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        for key, shape in shapes.items():
            check_known(key, self.name, [name for name in self._shapes if name.startswith("observation.")])
            if is_image(key) != (key in self._cameras):
                raise BadSetting(
                    f"{key!r} of {self.name} is {'no' if is_image(key) else 'a'} camera; name another one: "
                    "--rename_map"
                )
            if key in self._depth:
                raise BadSetting(f"{key!r} of {self.name} is a depth map; a policy's pictures are RGB")
            if not is_image(key):
                check_shape(key, self.name, self._shapes[key], shape)
        times = [i / (self.control_hz or 1.0) for i in range(1 - steps, 1)]
        with _one_line(self.name):
            dataset = LeRobotDataset(
                **self._place,
                episodes=sorted(episodes),
                delta_timestamps=dict.fromkeys(shapes, times) if steps > 1 else None,
                return_uint8=True,
            )
            numbers = [key for key in self._shapes if key.startswith("observation.")]
            numbers = [key for key in numbers if key not in self._cameras]
            numbers += [ACTION] if ACTION in self._shapes else []
            return DatasetEpisodes(dataset, self.name, shapes, steps, numbers)


class DatasetEpisodes:
    """Episodes of a LeRobotDataset, opened.

    Args:
        dataset: with these episodes, and as many observations in time as are wanted.
        name: of the dataset, for messages.
        shapes: key -> shape of one observation, channels first.
        steps: observations in time.
        numbers: features that are no pictures, the action last if there is one.
    """

    def __init__(
        self,
        dataset: "LeRobotDataset",
        name: str,
        shapes: Mapping[str, tuple[int, ...]],
        steps: int,
        numbers: Sequence[str],
    ) -> None:
        self._dataset, self._name, self._shapes, self._steps = dataset, name, shapes, steps
        self._columns = dataset.hf_dataset.with_format("numpy", columns=list(numbers))
        self._numbers = tuple(numbers)
        column = np.asarray(dataset.hf_dataset.data.column("episode_index"))
        self._rows = {int(episode): np.flatnonzero(column == episode) for episode in np.unique(column)}

    def length(self, episode: int) -> int:
        """Return how many frames an episode has."""
        return len(self._rows[episode])

    def moment(self, episode: int, index: int) -> dict[str, Any]:
        """Return what a policy sees at a frame; see `Episodes.moment`."""
        with _one_line(self._name):
            item = self._dataset[int(self._rows[episode][index])]
        found: dict[str, Any] = {"task": item["task"]}
        for key, shape in self._shapes.items():
            value = item[key].numpy()
            found[key] = self._picture(value) if is_image(key) else value.reshape(self._steps, *shape)
        return found

    def actions(self, episode: int) -> np.ndarray | None:
        """Return the recorded actions of an episode; see `Episodes.actions`."""
        if ACTION not in self._numbers:
            return None
        rows = self._rows[episode]
        found = np.asarray(self._columns[rows][ACTION], np.float32)
        return found.reshape(len(rows), -1)

    def mark(self, episode: int) -> int:
        """Return the mark of an episode; see `Episodes.mark`."""
        columns = self._columns[self._rows[episode]]
        return episode_mark(np.asarray(columns[key], np.float32) for key in self._numbers)

    def _picture(self, value: np.ndarray) -> np.ndarray:
        """Pictures (steps, height, width, channels) uint8, as of a camera; lerobot divides images by 255."""
        pictures = np.moveaxis(value.reshape(self._steps, *value.shape[-3:]), 1, -1)
        return pictures if pictures.dtype == np.uint8 else np.rint(255 * pictures).astype(np.uint8)


def _place(repo: str) -> dict[str, Any]:
    """What lerobot is to be told of where a dataset is."""
    folder = Path(repo)
    if folder.is_dir():
        if not (folder / _INFO).is_file():
            raise BadSetting(
                f"{repo} has no {_INFO}; give the folder of a LeRobotDataset, with meta and data"
            )
        return {"repo_id": f"local/{folder.resolve().name}", "root": folder}
    owner, _, name = repo.partition("/")
    if not owner.strip(".~") or not name or "/" in name or folder.exists():
        raise BadSetting(f"there is no dataset folder at {repo}, and on the Hub a name is OWNER/NAME")
    return {"repo_id": repo}


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Turn whatever keeps lerobot from reading a dataset into one line."""
    try:
        yield
    except VivaceError:
        raise
    except Exception as error:  # lerobot, its Hub client, arrow and video decoders raise many kinds
        where = "is damaged or of another format (lerobot's v3.0 is read)"
        if not Path(repo).is_dir():
            where = "is no folder here, and could not be had from the Hub (HF_HUB_OFFLINE=1 keeps off it)"
        raise BadSetting(f"dataset {repo} {where}: {type(error).__name__}: {in_one_line(error)}") from error


def _names(given: Any) -> tuple[str, ...]:
    """Names of an action's dimensions as datasets have them: a list, or lists by group."""
    if isinstance(given, Mapping):
        given = [name for group in given.values() for name in (group if isinstance(group, list) else [])]
    return tuple(str(name) for name in given or ())
