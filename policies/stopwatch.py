"""Where the time of a chunk goes: prepare, encode or vision and language, denoise or decode, finish."""

import time
from collections.abc import Callable

STAGES = ("prepare", "vision", "language", "encode", "denoise", "decode", "finish")
"""In the order they run; a policy with a language stage has vision and language in the place of encode, one
that writes tokens decodes, any other one denoises."""

Mark = Callable[[str], None]
"""Called with the name of a stage when it is over."""


def ignore(stage: str) -> None:
    """Nobody asked."""


class StageWatch:
    """Tells the stages of chunks apart.

    Args:
        synchronise: waits for the device, which else computes on while the next stage begins.
        now: clock [s].
    """

    def __init__(
        self, synchronise: Callable[[], None] = lambda: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._synchronise, self._now = synchronise, now
        self._last, self._last_s = "", 0.0
        self.chunks: list[dict[str, float]] = []
        """Of every chunk, stage -> time it took [s]."""

    def start(self) -> None:
        """Begin a chunk."""
        self.chunks.append({})
        self._last_s = self._now()

    def __call__(self, stage: str) -> None:
        """End a stage; the next one begins."""
        self._synchronise()
        now_s = self._now()
        if self._last == "vision":  # then what is left of encode is language
            stage = "language"
        self.chunks[-1][stage] = self.chunks[-1].get(stage, 0.0) + now_s - self._last_s
        self._last, self._last_s = stage, now_s

    def begins_to_read(self) -> None:
        """Told whenever the first language layer begins: what `encode` did before it is vision."""
        if self._last == "prepare":  # not of the tokens that are decoded later
            self("vision")
