"""Latencies out of a profile in the place of a clock: what `vivace tune --budget.device` times by."""

from collections.abc import Mapping

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.latencies import Measured
from vivace.eval.measure.timing import Rounds
from vivace.eval.profile.ledger import counted
from vivace.eval.profile.profile import Profile, Unpredictable, way_of
from vivace.policies.session import Session


class Predicting:
    """Stands where `chunk_latencies` does: all the times there are come at once, however few are asked."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def __call__(self, runs: Mapping[str, Session], data: CalibrationData, rounds: Rounds) -> Measured:
        """Predict chunks of several sessions; what cannot be is left out, and why is said."""
        found = Measured({}, {})
        for name, session in runs.items():
            with rounds.sparing(name, found.raised):
                parts = counted(session, data).values()
                try:
                    median_s = self._profile.chunk_s(way_of(session.execution), parts)
                except Unpredictable as error:
                    found.left_out[name] = f"its latency cannot be predicted: {error}"
                    continue
                found.times_s[name] = self._profile.times_s(median_s)
        return found
