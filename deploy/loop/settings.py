"""How the loop executes chunks: one set of choices, the same for a simulation, a robot and a ROS node."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from vivace.policies.backports import Self
from vivace.policies.errors import BadSetting
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.spec import ChunkExecution, Mode, PolicySpec


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop executes chunks."""

    USUAL: ClassVar[Mode] = Mode.SYNC
    """The mode where nobody says one."""

    mode: Mode | None = None
    """sync: act, then think; async: think while acting; rtc: async, and a chunk continues the one before.
    When not given as the plan says, else sync."""
    n_action_steps: int | None = None
    """Actions of a chunk that are fresh, in sync mode the ones that are executed; when not given as the plan
    says, else the policy's own number."""
    request_at: int | None = None
    """async, rtc: ask for the next chunk when at most so many fresh actions are left, which times the control
    period is the latency budget; when not given as the plan says, else as many as the expected latency takes,
    or the best plan of a ladder."""
    ladder: tuple[str, ...] = ()
    """async, rtc: before every chunk the best of these is chosen that will be there in time, best first: what
    vivace eval runs (plain, accelerated, or rows of bench's table such as ddim-4); elsewhere the folders of
    faster bundles of the same policy. Where all but the first end in @ and a number, such as ddim-4@1.7, each
    is taken when chunks take so many times as long as measured beforehand."""
    anytime: bool = False
    """async, rtc: a chunk that would be late is cut short between two of its steps, if the worker can."""
    blend_ticks: int = 0
    """async, rtc: ticks over which a newer chunk is blended in; 0 switches at once."""
    ramp_ticks: int = 5
    """Ticks in which the fallback brings velocities to zero."""
    rtc: RealTimeChunking = field(default_factory=RealTimeChunking)
    """How a chunk continues the one before, in mode rtc."""

    def __post_init__(self) -> None:
        """Check the choices."""
        object.__setattr__(self, "mode", None if self.mode is None else Mode(self.mode))
        object.__setattr__(self, "ladder", tuple(self.ladder))
        steps, at = self.n_action_steps, self.request_at
        if steps is not None and steps < 1:
            raise BadSetting(f"n_action_steps={steps}; at least 1 is needed")
        if at is not None and (at < 0 or (steps is not None and at > steps)):
            raise BadSetting(f"request_at={at}; needed: 0..{steps or 'n_action_steps'}, or nothing")
        if self.mode == Mode.SYNC and (at is not None or self.blend_ticks or self.anytime):
            raise BadSetting(
                "request_at, blend_ticks and anytime do nothing in mode sync; leave them out or use async"
            )
        if self.mode == Mode.SYNC and self.ladder:
            raise BadSetting(
                "a ladder needs time to choose by, which sync mode has not; use mode async or rtc"
            )
        if self.blend_ticks < 0 or self.ramp_ticks < 1:
            raise BadSetting(
                f"blend_ticks={self.blend_ticks}, ramp_ticks={self.ramp_ticks}; needed: >= 0 and >= 1"
            )

    @property
    def known_mode(self) -> Mode:
        """The mode, the usual one where nobody said one."""
        return self.mode or self.USUAL

    @property
    def is_sync(self) -> bool:
        """Whether the robot waits for each chunk."""
        return self.known_mode == Mode.SYNC

    def settled(self, said: Mode | None) -> Self:
        """Return the same in a mode: the user's, else the one that a plan says, else the usual one."""
        return replace(self, mode=self.mode or said or self.USUAL)

    @property
    def chunking(self) -> RealTimeChunking | None:
        """How a chunk continues the one before; None unless the mode is rtc."""
        return self.rtc if self.mode == Mode.RTC else None

    def in_mode(self, mode: Mode) -> Self:
        """Return the same in another mode; what sync mode has no use for is left out there."""
        if mode != Mode.SYNC:
            return replace(self, mode=mode)
        return replace(self, mode=mode, request_at=None, ladder=(), anytime=False, blend_ticks=0)

    @property
    def execution(self) -> ChunkExecution:
        """What a user says of how chunks are executed."""
        return ChunkExecution(mode=self.mode, n_action_steps=self.n_action_steps, request_at=self.request_at)

    def executing(self, execution: ChunkExecution) -> Self:
        """Return the same with a plan's way to execute chunks; of what it does not say the user's stays."""
        found = execution.over(self.execution)
        loop = replace(self, mode=found.mode, n_action_steps=found.n_action_steps, request_at=None)
        return loop if loop.is_sync else replace(loop, request_at=found.request_at)  # else nobody asks early

    def lead(self, spec: PolicySpec) -> int | None:
        """How many actions are left when the next chunk is asked for; None: as many as the latency takes."""
        return spec.request_at if self.request_at is None else self.request_at

    def fresh_actions(self, spec: PolicySpec) -> int:
        """Return how many actions of a policy's chunk are fresh: so many as are asked for, or its own number.

        Raises:
            BadSetting: its chunks have fewer, or the next one would be asked for before there is the first.
        """
        count, available = self.n_action_steps or spec.n_action_steps, spec.horizon - spec.first_action
        if count > available:
            raise BadSetting(
                f"n_action_steps={count}, but a chunk has {available} actions; give 1..{available}"
            )
        if self.request_at is not None and self.request_at > count:
            raise BadSetting(
                f"request_at={self.request_at}; needed: 0..{count} (the policy's n_action_steps), or nothing"
            )
        return count
