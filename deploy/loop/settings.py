"""How the loop executes chunks: modes, and the choices that go with them."""

from dataclasses import dataclass

import numpy as np

from vivace.policies.backports import StrEnum
from vivace.policies.errors import BadSetting


class Mode(StrEnum):
    """How thinking and acting overlap."""

    SYNC = "sync"
    ASYNC = "async"
    RTC = "rtc"


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop executes chunks."""

    mode: Mode = Mode.SYNC
    n_action_steps: int = 8
    """Actions of a chunk that are fresh; in sync mode the ones that are executed."""
    request_at: int | None = None
    """Async: ask for the next chunk when at most this many fresh actions are left, 0..n_action_steps;
    None: as many as the expected latency takes, or the best plan of a ladder."""
    anytime: bool = False
    """Async, rtc: a chunk that would be late is cut short between two of its steps, if the worker can."""
    blend_ticks: int = 0
    """Async: ticks over which a newer chunk is blended in; 0 switches at once."""
    ramp_ticks: int = 5
    """Ticks in which the fallback brings velocities to zero."""
    initial_action: tuple[float, ...] | None = None
    """What the fallback holds before the first action, such as the robot's posture; zeros when None."""

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.mode not in list(Mode):
            raise BadSetting(f"mode={self.mode!r} is unknown; the modes: {', '.join(Mode)}")
        if self.n_action_steps < 1:
            raise BadSetting(f"n_action_steps={self.n_action_steps}; at least 1 is needed")
        if self.request_at is not None and not 0 <= self.request_at <= self.n_action_steps:
            raise BadSetting(
                f"request_at={self.request_at}; needed: 0..{self.n_action_steps} (n_action_steps), or None"
            )
        if self.mode == Mode.SYNC and (self.request_at is not None or self.blend_ticks or self.anytime):
            raise BadSetting(
                "request_at, blend_ticks and anytime do nothing in mode sync; leave them out or use async"
            )
        if self.blend_ticks < 0 or self.ramp_ticks < 1:
            raise BadSetting(
                f"blend_ticks={self.blend_ticks}, ramp_ticks={self.ramp_ticks}; needed: >= 0 and >= 1"
            )
        if self.initial_action is not None and not np.isfinite(self.initial_action).all():
            raise BadSetting(f"initial_action={self.initial_action} holds NaN or infinity")
