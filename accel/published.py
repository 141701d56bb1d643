"""Combinations of techniques that papers publish, as rows of a table.

EfficientVLA's ablation is arXiv 2506.10100, table 5; its MLPs compensated as by EoRA (2410.21271) is ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vivace.accel.variant import Request, Variant


@dataclass(frozen=True)
class _Combination:
    name: str
    label: str
    rows: tuple[str, ...]
    """Rows of techniques that are combined."""
    more: tuple[Request, ...] = ()


_REST = ("layers", "tokens", "cache")
_ALL = ("mlp", *_REST)
_EVENLY = ("mlp", "uniform-layers", "tokens", "cache")
_COMBINATIONS = (
    _Combination("layers+mlp", "layers, MLP channels", ("mlp", "layers")),
    _Combination("layers+mlp+cache", "layers, MLP, cache", ("mlp", "layers", "cache")),
    _Combination("tokens+cache", "patches, cache", ("tokens", "cache")),
    _Combination("all", "layers, MLP, patches, cache", _ALL),
    _Combination("all+eora", "all, MLP compensated at rank 16", _REST, (("mlp_prune", {"rank": 16}),)),
    _Combination("all+hoist", "all, hoisted", (*_ALL, "hoist")),
    _Combination("all+evenly", "all, layers dropped evenly", _EVENLY),
    _Combination("all+evenly+hoist", "all, layers dropped evenly, hoisted", (*_EVENLY, "hoist")),
    _Combination("all+guidance", "all, adaptive guidance", (*_ALL, "guidance")),
    _Combination("everything", "all, adaptive guidance, hoisted", (*_ALL, "guidance", "hoist")),
    _Combination("combined", "layers, patches, early exit 2", ("layers", "tokens", "exit-2")),
)
_COMPILED = ("all",)
_COLOUR = "#0b8f7d"


def published(rows: Mapping[str, Variant]) -> Iterator[Variant]:
    """Yield the combinations of which all is there.

    Args:
        rows: name -> row of the techniques that fit a policy.
    """
    kinds = {kind for row in rows.values() for kind, _ in row.wanted}
    for one in _COMBINATIONS:
        if not rows.keys() >= set(one.rows) or not kinds >= {kind for kind, _ in one.more}:
            continue
        parts = [rows[name].wanted for name in one.rows]
        wanted = (*one.more, *(request for part in parts for request in part))
        found = Variant(one.name, one.label, wanted, _COLOUR)
        yield found
        if one.name in _COMPILED:
            yield found.compiled()
