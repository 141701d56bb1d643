"""Where results go, and how they are written."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from vivace.policies.errors import BadSetting, NoRoom
from vivace.policies.files import replacing


def output_folder(verb: str, output_dir: str | None, job_name: str) -> Path:
    """Return the folder of this job's results, made if need be.

    Args:
        verb: e.g. "eval".
        output_dir: chosen by the user; outputs/<verb>/<date>/<time>_<job> when None.
        job_name: part of the default name.

    Raises:
        BadSetting: it is a file, or cannot be made.
    """
    if output_dir is None:
        now = datetime.now()
        folder = Path("outputs") / verb / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{job_name or verb}"
    else:
        folder = Path(output_dir)
    if folder.is_file():
        raise BadSetting(f"output_dir={folder} is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadSetting(
            f"the folder {folder} cannot be made ({error.strerror}); give another --output_dir"
        ) from error
    return folder


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Note what a folder's results are of; a folder that holds another job's is refused.

    Raises:
        BadSetting: the folder was begun by a job with other settings.
    """
    note = folder / "job.json"
    wanted = json.loads(json.dumps(identity, default=str))
    if note.is_file():
        found = read_json(note, "job description")
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if changed:
            raise BadSetting(
                f"{folder} holds results of another job (it differs in {', '.join(changed)}); give another "
                "--output_dir, or remove it"
            )
    write_json(note, wanted)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; numpy scalars and arrays become numbers and lists."""
    text = json.dumps(data, indent=1, default=_plain, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, on its own even after an interrupted write.

    Raises:
        NoRoom: it cannot be written; what is there stays whole.
    """
    try:
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            is_cut = size > 0 and file.read(1) != b"\n"
            file.write(b"\n" * is_cut + line.encode() + b"\n")
    except OSError as error:
        raise NoRoom(
            f"{path} cannot be written ({error.strerror}); make room and run the same command again: what "
            "was stored before is kept"
        ) from error


def read_json(path: Path, what: str) -> Any:
    """Read JSON; raises `BadSetting` naming what was expected there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadSetting(f"no {what} at {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path} is not a {what}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")
