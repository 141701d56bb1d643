"""Targets a user states with `--require`: read before anything runs, judged at the end."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rich.console import Console

from vivace.policies.errors import BadSetting


@dataclass(frozen=True)
class Requirement:
    """A value of one run that must reach a bound."""

    run: str
    value: str
    bound: float


def read_requirements(
    texts: Sequence[str], runs: Collection[str], values: Collection[str]
) -> tuple[Requirement, ...]:
    """Read targets such as "accelerated.success>=0.9".

    Args:
        texts: as typed.
        runs: names there will be.
        values: what there will be of each.

    Raises:
        BadSetting: one cannot be read, or names something there will not be.
    """
    found = []
    for text in texts:
        name, _, bound = text.partition(">=")
        run, _, value = name.strip().partition(".")
        try:
            requirement = Requirement(run, value, float(bound))
        except ValueError:
            requirement = None
        if requirement is None or run not in runs or value not in values:
            raise BadSetting(
                f"requirement {text!r} cannot be read; form: <run>.<value>>=<number>, "
                f"runs: {', '.join(runs)}, values: {', '.join(values)}"
            )
        found.append(requirement)
    return tuple(found)


def are_met(requirements: Sequence[Requirement], summary: Mapping[str, Mapping[str, float]]) -> bool:
    """Say which targets were missed; True if none was."""
    missed = [r for r in requirements if not summary[r.run][r.value] >= r.bound]
    with suppress(OSError):  # the terminal may be gone
        for r in missed:
            got = summary[r.run][r.value]
            Console(stderr=True).print(f"missed: {r.run}.{r.value}>={r.bound:g} (got {got:.3f})", style="red")
    return not missed
