"""A variant: a way of running a policy, a row of a table; on a ladder it is a rung."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vivace.policies.plain_data import Between

Request = tuple[str, Mapping[str, Any]]
"""A technique asked for: its kind, and options in which it differs from its own."""
Choices = tuple[Any, ...] | range | Between
"""What an option may be: one of these, a whole number of a range, or a number between two."""
GREY = "#8b93a1"
COMPILE = "compile"
"""Kind of the technique that every speed claim has to stand beside."""


class Choose(Protocol):
    """Lets a search choose one value of an option after the other."""

    def __call__(self, option: str, choices: Choices, widest: range | None = None) -> Any:
        """Choose one.

        Args:
            option: its name; `name.0`, `name.1` of one that holds several.
            choices: what it may be here. Of one that is chosen among names, the same in every candidate.
            widest: where whole numbers depend on what was chosen before, the range of all.
        """


@dataclass(frozen=True)
class Variant:
    """A policy under some techniques, before they are calibrated."""

    name: str
    """In tables, results and `--bench.only`, `--eval.ladder`."""
    label: str
    """What a person reads."""
    wanted: tuple[Request, ...] = ()
    """Techniques to calibrate, in any order; none: as trained."""
    colour: str = GREY
    """In figures."""
    is_short: bool = False
    """Stands for its technique where there is no room for all rows, as in `vivace eval`."""
    n_action_steps: int | None = None
    """Actions executed of a chunk, where it is not the policy's own number."""
    is_baseline: bool = False
    """What has to be beaten: `vivace tune` times it, and lets it race, however it looks before."""

    @property
    def is_compiled(self) -> bool:
        """Whether it runs under `torch.compile`."""
        return any(kind == COMPILE for kind, _ in self.wanted)

    def compiled(self) -> "Variant":
        """Return the same under `torch.compile`."""
        return replace(
            self,
            name="compile" if self.name == "plain" else f"{self.name}-compile",
            label=f"{self.label}, torch.compile",
            colour="#2f3640",
            wanted=(*self.wanted, (COMPILE, {})),
            is_short=False,
        )
