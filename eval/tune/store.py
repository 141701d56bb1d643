"""Every trial in a file as soon as it is known, so that a search goes on where it was stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vivace.eval.output import read_json, write_json
from vivace.eval.tune.candidate import Trial
from vivace.policies.errors import BadSetting

FILE_NAME, SETTLED = "trials.jsonl", "pace.json"


class Store:
    """The trials of one search, in JSON lines; of those of one candidate the newest counts."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier run stored.

        Raises:
            BadSetting: a line is whole, but no trial.
        """
        self.folder = folder
        self._file = folder / FILE_NAME
        self._trials: dict[str, Trial] = {}
        if not self._file.is_file():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                data = json.loads(line)
            except json.JSONDecodeError:  # cut off while it was written: its candidate is tried again
                continue
            trial = Trial.from_json(data)
            self._trials[trial.key] = trial

    @property
    def trials(self) -> Mapping[str, Trial]:
        """Key of a candidate -> its newest trial, in the order in which they were first seen."""
        return MappingProxyType(self._trials)

    def settled(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a search is paced by: measured once, and the same where it goes on after a stop.

        Args:
            name: of what is measured.
            measure: measures, as plain data; nothing (empty) where it cannot be told yet.
        """
        file = self.folder / SETTLED
        known: dict[str, dict[str, Any]] = read_json(file, "pace") if file.is_file() else {}
        if not known.get(name):
            known[name] = measure()
            write_json(file, known)
        return known[name]

    def add(self, trial: Trial) -> Trial:
        """Append a trial, on a line of its own even after an interrupted write; returns it.

        Raises:
            BadSetting: it cannot be written, for want of room or right; what is there stays whole.
        """
        line = json.dumps(trial.to_json(), allow_nan=False) + "\n"
        try:
            with self._file.open("ab+") as file:
                is_cut = file.tell() > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
                file.write(b"\n" * is_cut + line.encode())
        except OSError as error:
            raise BadSetting(
                f"a trial cannot be stored in {self._file} ({error.strerror}); make room and run the same "
                "command again: what was stored before is kept"
            ) from error
        self._trials[trial.key] = trial
        return trial
