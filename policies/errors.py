"""What a user can get wrong, one class per mistake; every message says found, needed, what to do."""


class VivaceError(Exception):
    """Root of every error a user's input can cause; the CLI turns it into one line and exit code 2."""


class PolicyNotFound(VivaceError):
    """Raised when a checkpoint is missing, foreign, truncated or holds impossible values."""


class NoStatistics(PolicyNotFound):
    """Raised when a checkpoint has no statistics to normalise by, and none are lent to it."""


class UnsupportedPolicy(VivaceError):
    """Raised when a technique is asked of a policy that lacks the stage it works on."""


class PlanMismatch(VivaceError):
    """Raised when an acceleration plan was made for another policy, or is malformed."""


class UnknownBlock(PlanMismatch):
    """Raised when a plan or an option names a block that the policy does not have."""


class CalibrationError(VivaceError):
    """Raised when calibration cannot give a plan: settings out of range or unusable data."""


class ObservationMismatch(VivaceError):
    """Raised when an observation lacks a key, or has another shape or non-finite values."""


class NonFiniteActions(VivaceError):
    """Raised when a policy, as it is or under a plan, gives actions that are NaN or infinite."""


class UnknownEnvironment(VivaceError):
    """Raised when an environment type or task is not registered."""


class NoRendering(VivaceError):
    """Raised when a world is to be drawn and this computer's OpenGL cannot be used."""


class BadSetting(VivaceError):
    """Raised when an option has a value outside its range, or options contradict each other."""


class NoRoom(VivaceError):
    """Raised when what was found cannot be stored, for want of room or right."""


class NothingRuns(VivaceError):
    """Raised when nothing of what a search compares can be run: then none of it is at fault alone."""


class WorkerLost(VivaceError):
    """Raised when episodes cannot be run because the processes that run them die."""


class RobotFailed(VivaceError):
    """Raised when a robot in a process of its own fails, does not answer in time, or has ended."""


class BadBundle(VivaceError):
    """Raised when an exported policy is missing, damaged, of a newer version or does not fit the robot."""


class ParityError(VivaceError):
    """Raised when an exported policy gives other actions than the one it was exported from."""


def in_one_line(error: BaseException, most: int = 300) -> str:
    """What another's error says, on one line, cut where it is long; its class if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + "…"


def named(error: BaseException) -> str:
    """Another's error by its class and what it says, on one line."""
    return f"{type(error).__name__}: {in_one_line(error)}"
