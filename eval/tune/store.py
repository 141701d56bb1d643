"""Every trial in a file as soon as it is known, so that a search goes on where it was stopped.

Who was dropped in a race was dropped by those that raced: another race, of another budget or after a stop,
drops anew, and knows the episodes that were played.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vivace.eval.output import append_line, claim, read_json, write_json
from vivace.eval.terminal import console
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.space import describe
from vivace.policies.errors import BadSetting
from vivace.policies.files import replacing

FILE_NAME, SETTLED, CHOSEN, EPISODES = "trials.jsonl", "pace.json", "chosen.json", "episodes"


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
            self._trials[trial.key] = _revived(trial)

    @classmethod
    def begun(cls, folder: Path, identity: Mapping[str, Any], known: str = "") -> "Store":
        """Claim a folder for a search, and begin with what another search of its kind stored.

        Args:
            folder: of the search; what it holds already stays, and nothing is added to it.
            identity: what must be the same for trials to be taken over.
            known: folder of the other search; empty: none.

        Raises:
            BadSetting: one of the folders is another job's, or there is no search in the known one.
        """
        source = Path(known) if known else None
        if source is not None:
            if not (source / FILE_NAME).is_file():
                raise BadSetting(f"tune.known={known}: no search is there ({FILE_NAME} is missing)")
            claim(source, dict(identity))
        claim(folder, dict(identity))
        if source is not None and not (folder / FILE_NAME).exists():
            if (source / EPISODES).is_dir():
                shutil.copytree(source / EPISODES, folder / EPISODES, dirs_exist_ok=True)
            other = cls(source)
            trials = other.trials.values()
            write_json(folder / SETTLED, other._read(SETTLED) | {"known": {"n": len(trials)}})
            with replacing(folder / FILE_NAME) as file:
                file.write_text("".join(f"{_line(trial)}\n" for trial in trials), encoding="utf-8")
        return cls(folder)

    @property
    def n_known(self) -> int:
        """Trials that were taken over from another search."""
        return int(self._read(SETTLED).get("known", {"n": 0})["n"])

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
        known = self._read(SETTLED)
        if not known.get(name):
            known[name] = measure()
            write_json(self.folder / SETTLED, known)
        settled: dict[str, Any] = known[name]
        return settled

    def chosen(
        self, stage: str, asked: Sequence[Any], choose: Callable[[], Sequence[Trial]]
    ) -> Sequence[Trial]:
        """Return whom a stage takes: chosen once, and the same ones where a search goes on after a stop.

        By then more is known of more trials than when it was chosen, and others would be.

        Args:
            stage: that takes them.
            asked: what the choice depends on besides the trials, as plain data.
            choose: chooses them.
        """
        known = self._read(CHOSEN)
        if known.get("asked") != list(asked):
            known = {"asked": list(asked)}
        if stage not in known:
            known[stage] = [trial.key for trial in choose()]
            write_json(self.folder / CHOSEN, known)
        found = (self._trials.get(key) for key in known[stage])
        return [trial for trial in found if trial is not None and trial.is_alive]

    def has_chosen(self, stage: str) -> bool:
        """Whether it has been chosen whom a stage takes."""
        return stage in self._read(CHOSEN)

    def _read(self, name: str) -> dict[str, Any]:
        """What a file of decisions holds; empty if there is none yet."""
        file = self.folder / name
        found: dict[str, Any] = read_json(file, f"search's {name}") if file.is_file() else {}
        return found

    def add(self, trial: Trial) -> Trial:
        """Append a trial, on a line of its own even after an interrupted write; returns it.

        Raises:
            NoRoom: it cannot be written; what is there stays whole.
        """
        append_line(self._file, _line(trial))
        self._trials[trial.key] = trial
        return trial

    def fail(self, stage: Status, raised: Mapping[str, str], **known: Mapping[str, Any]) -> None:
        """Store that trials failed before they became what a stage makes of them, and name them.

        Args:
            stage: what it makes of them.
            raised: key of a trial -> what it raised.
            known: field of a trial -> key -> what is known of it by now.
        """
        for key, reason in raised.items():
            more = {field: of[key] for field, of in known.items() if key in of}
            trial = self.add(self._trials[key].failed(stage, reason, **more))
            told = f"left out: {describe(trial.candidate)}: {reason}"
            console.print(told, style="yellow", highlight=False, markup=False)


def _line(trial: Trial) -> str:
    return json.dumps(trial.to_json(), allow_nan=False)


def _revived(trial: Trial) -> Trial:
    """A trial as it was before a race dropped it, with the episodes that it met."""
    was_dropped = trial.status is Status.DROPPED and trial.stage is Status.RACED
    return trial.became(Status.TIMED, stage=None, reason="") if was_dropped else trial
