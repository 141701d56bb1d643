"""What is found of an execution on observations is found once, as long as there are both."""

from collections.abc import Callable
from functools import wraps
from weakref import ref

from vivace.accel.technique import CalibrationData
from vivace.policies.execution import Execution


def remembered[Ran: Execution, Found](
    look: Callable[[Ran, CalibrationData], Found],
) -> Callable[[Ran, CalibrationData], Found]:
    """Return a function that looks once at the same execution on the same observations.

    Of many plans that are calibrated together (`Calibrator`) every one begins with the policy as trained, and
    what several techniques ask of it takes the longest. It is the very same objects that count, not equal
    ones: neither of them ever changes.

    Args:
        look: what is found is shared, so nobody may change it.
    """
    known: list[tuple[ref[Ran], ref[CalibrationData], Found]] = []

    @wraps(look)
    def looked(execution: Ran, data: CalibrationData) -> Found:
        known[:] = [entry for entry in known if entry[0]() is not None and entry[1]() is not None]
        for ran, seen, found in known:
            if ran() is execution and seen() is data:
                return found
        found = look(execution, data)
        known.append((ref(execution), ref(data), found))
        return found

    return looked
