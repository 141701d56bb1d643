"""Open the recorded episodes that a command names."""

from vivace.eval.recordings.lerobot_dataset import DatasetRecording
from vivace.eval.recordings.npz import FileRecording
from vivace.eval.recordings.recording import Recording


def open_recording(repo: str, file: str) -> Recording | None:
    """Return the recording that is named; None if none is.

    Args:
        repo: LeRobotDataset, its folder or its name on the Hub.
        file: .npz of observations, in the place of a dataset.

    Raises:
        BadSetting: it is not there, or cannot be read.
    """
    if repo:
        return DatasetRecording(repo)
    return FileRecording(file) if file else None
