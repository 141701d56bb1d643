"""A run as a rerun stream: ticks, latencies and actions over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.policies.errors import BadSetting

_SCALARS = {
    "loop/late_ms": ("late_s", 1e3),
    "loop/work_ms": ("work_s", 1e3),
    "loop/latency_ms": ("latency_s", 1e3),
    "loop/queue": ("remaining", 1.0),
    "loop/age_ticks": ("age_ticks", 1.0),
}
"""Entity -> (field of a tick, factor)."""


class RerunStream:
    """A sink of `RunLog`.

    Args:
        target: "viewer": one is started; else a file to write, such as run.rrd.

    Raises:
        BadSetting: rerun is not installed.
    """

    def __init__(self, target: str) -> None:
        try:
            import rerun
        except ImportError as error:
            raise BadSetting(
                "a rerun stream needs the package rerun-sdk; pip install 'vivace[rerun]'"
            ) from error
        self._rerun: Any = rerun
        self._stream = rerun.RecordingStream("vivace")
        if target == "viewer":
            self._stream.spawn()
        else:
            self._stream.save(Path(target))

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Log ticks as scalars and the rest as text."""
        for line in lines:
            self._stream.set_time("run", duration=line["time_s"])
            if line["kind"] != "tick":
                text = f"{line['event']}: {line.get('why', '')}"
                self._stream.log("loop/events", self._rerun.TextLog(text))
                continue
            self._stream.set_time("tick", sequence=line["tick"])
            for entity, (name, factor) in _SCALARS.items():
                if line[name] is not None:
                    self._stream.log(entity, self._rerun.Scalars(factor * line[name]))
            self._stream.log("action", self._rerun.Scalars(line["action"]))
            if line["source"] != "chunk":
                self._stream.log("loop/source", self._rerun.TextLog(line["source"]))

    def close(self) -> None:
        """Send what waits."""
        self._stream.flush()
