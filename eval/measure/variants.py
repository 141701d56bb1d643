"""The rows of a table: the plain loop, what every technique offers, and combinations that papers publish."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vivace.accel.plan import AccelerationPlan
from vivace.accel.published import published
from vivace.accel.registry import exact_work, fits, techniques
from vivace.accel.variant import COMPILE, Variant
from vivace.policies.errors import BadSetting

PLAIN = Variant("plain", "as trained", is_baseline=True)
LEROBOT = Variant("lerobot", "lerobot's own chunk", colour="#2b6cb0")
"""What lerobot itself takes: its `predict_action_chunk`, or what its own loop would execute."""
ACCELERATED = Variant("accelerated", "accelerated by its own plan", colour="#0b8f7d")
SAVED = (ACCELERATED, ACCELERATED.compiled())
"""The plan saved beside the checkpoint; not calibrated anew."""


def variants_of(staged: Any, options: Mapping[str, Any] | None = None) -> tuple[Variant, ...]:
    """Return the table that fits a policy: as trained, one technique at a time, then combinations.

    Args:
        staged: the policy; one that does not come apart has itself, and itself compiled.
        options: kind of a technique -> its `Options`, where they are not the usual ones.

    Raises:
        BadSetting: two techniques call a row the same.
    """
    chosen = options or {}
    rows = [PLAIN, PLAIN.compiled()]
    for kind, technique in techniques().items():
        if fits(technique, staged):
            rows += technique.variants(staged, chosen.get(kind) or technique.Options())
    exact = exact_work(staged)
    if len(exact) > 1:
        rows.append(Variant("exact", "exact work removed", exact, "#5a6472", is_short=True))
    rows += published({row.name: row for row in rows})
    name, times = Counter(row.name for row in rows).most_common(1)[0]
    if times > 1:
        raise BadSetting(f"{times} techniques call a row {name!r}; give one of them another name")
    how = vars(chosen[COMPILE]) if COMPILE in chosen else {}
    return tuple(
        replace(row, wanted=tuple((kind, how if kind == COMPILE else it) for kind, it in row.wanted))
        for row in rows
    )


def unfit(staged: Any) -> dict[str, str]:
    """Say which techniques have no row, for what a policy lacks: kinds -> the reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for kind, technique in techniques().items():
        lacking = [need for need in technique.needs if not need.is_met(staged)]
        if lacking:
            found[lacking[0].lack(staged)].append(kind)
    return {", ".join(kinds): reason for reason, kinds in found.items()}


def labelled(variant: Variant, plan: AccelerationPlan) -> Variant:
    """Return a row that also says what calibration chose: how a sampler's steps are spaced."""
    remarks = [technique.remark for technique in plan.techniques if technique.remark]
    return replace(variant, label=", ".join([variant.label, *remarks]))
