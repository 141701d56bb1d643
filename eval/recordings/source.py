"""Open the recorded episodes that a command names."""

from vivace.eval.options import DataOptions
from vivace.eval.recordings.lerobot_dataset import DatasetRecording
from vivace.eval.recordings.npz import FileRecording
from vivace.eval.recordings.recording import Recording


def open_recording(options: DataOptions) -> Recording | None:
    """Return the recording that is named; None if none is.

    Raises:
        BadSetting: it is not there, or cannot be read.
    """
    if options.repo:
        return DatasetRecording(options.repo)
    return FileRecording(options.file) if options.file else None
