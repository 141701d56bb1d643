"""One step of a sampler in numbers, for a robot that has numpy and no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Memory = tuple[np.ndarray, ...]


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

    def presumed(self, what: str | None, x: np.ndarray, out: np.ndarray) -> Memory:
        """What the first step of a chunk remembers where its sampler has earlier ones, see `remembered`."""
        clean = self.cleaned(x, out)
        if what == "noise":
            clean = ((x - self.alpha * clean) / self.sigma).astype(x.dtype)
        return (clean,) * len(self.memory)

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


def remembered(before: Sequence[StepTable]) -> Literal["clean", "noise"] | None:
    """What the step behind these remembers of them, if that can be presumed where they were not run.

    The clean chunks they predicted, or the noise that the first of them began with.
    """
    kept = [table.keep for table in before]
    if not kept:
        return None
    if set(kept[-1]) == {"clean"}:
        return "clean"
    return "noise" if kept[0] == ("x",) and all(keep == ("m0",) for keep in kept[1:]) else None
