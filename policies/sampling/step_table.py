"""One step of a sampler in numbers, for a robot that has numpy and no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Memory = tuple[np.ndarray, ...]


CLEAN, NOISE = "clean", "noise"
"""What steps remember: what those before said of the clean chunk, and the noise that the chunk began with."""


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Coefficients of one step.

        clean  = clean_x x + clean_out out, clipped to [-clip, clip]
        next   = x x + out out + clean clean + sum_i memory_i m_i + noise n,  n standard normal
        memory = what `keep` names of (x, out, clean, m0, m1, …)

    `out` is what the denoiser said; m_i is what the step before kept.
    """

    t: float
    """Timestep given to the denoiser."""
    alpha: float
    """x is alpha clean + sigma noise."""
    sigma: float
    clean_x: float = 0.0
    clean_out: float = 0.0
    clip: float | None = None
    x: float = 0.0
    out: float = 0.0
    clean: float = 0.0
    memory: tuple[float, ...] = ()
    noise: float = 0.0
    keep: tuple[str, ...] = ()

    def cleaned(self, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Clean chunk (B, H, A) that the denoiser's word about x means."""
        clean: np.ndarray = self.clean_x * x + self.clean_out * out
        return clean if self.clip is None else np.clip(clean, -self.clip, self.clip)

    def advance(
        self, x: np.ndarray, out: np.ndarray, memory: Memory, draw: Callable[[], np.ndarray]
    ) -> tuple[np.ndarray, Memory]:
        """Return the next x and the next memory.

        Args:
            x: present sample (B, H, A).
            out: what the denoiser said of it.
            memory: what the step before kept.
            draw: returns standard normal numbers of the sample's shape; called at most once.
        """
        known = {"x": x, "out": out} | {f"m{i}": value for i, value in enumerate(memory)}
        known["clean"] = self.cleaned(x, out)
        following = self.x * x + self.out * out + self.clean * known["clean"]
        for weight, value in zip(self.memory, memory, strict=True):
            following = following + weight * value
        if self.noise:
            following = following + self.noise * draw()
        return following.astype(x.dtype), tuple(known[name] for name in self.keep)


def remembered(tables: Sequence[StepTable], index: int) -> tuple[str, ...] | None:
    """What a step uses of those before it, if a chunk that begins with it can know that.

    Returns:
        `CLEAN` or `NOISE` for each memory, none of a step without; None where it is something else, as in
        the midst of a step of RK4.
    """
    if not tables[index].memory:
        return ()
    before = index - 1
    while before > 0 and tables[before].keep == ("m0",):  # handed on
        before -= 1
    if before >= 0 and tables[before].keep == ("clean",):
        return (CLEAN,)
    begins_with_noise = before == 0 and tables[0].keep == ("x",) and not tables[0].alpha
    return (NOISE,) if begins_with_noise else None
