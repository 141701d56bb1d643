"""A batch as lerobot's preprocessor gives it: what a policy observed, and whatever else it is told.

Observations have a time axis (B, To, ...), the newest last. All else is as the preprocessor left it for the
newest observation: tokens, ids of a robot or a domain, texts, one a row, and what a vision-language model's
own processor makes, which may have rows of its own, such as patches.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from lerobot.utils.constants import ACTION, DONE, INFO, REWARD, TRUNCATED
from torch import Tensor

from vivace.policies.errors import UnsupportedPolicy

_PATCHES, _SIZES = "pixel_values", "image_grid_thw"
"""The patches of all observations' pictures, one behind the other, and of every picture its size in patches:
time, height, width."""
Batch = dict[str, Any]
"""lerobot keys -> values; the first one has a row for each observation."""
_OUTCOMES = {ACTION, REWARD, DONE, TRUNCATED, INFO}
"""What lerobot's pipelines return besides, of moments that were lived through already."""


def rows_of(batch: Batch) -> int:
    """How many observations a batch holds."""
    return len(next(iter(batch.values())))


def has_rows(value: Any, rows: int) -> bool:
    """Whether a value has one entry for each of so many observations."""
    is_sized = (isinstance(value, Tensor) and value.ndim > 0) or isinstance(value, list | tuple)
    return is_sized and len(value) == rows


def assembled(moments: Sequence[Mapping[str, Any]], own: Collection[str], rows: int) -> Batch:
    """One batch of what lerobot's preprocessor returned of every time step.

    Args:
        moments: of each time step (B, ...), oldest first.
        own: the policy's names of its observations.
        rows: how many observations there are (B).
    """
    newest = moments[-1]
    seen = {key: torch.stack([moment[key] for moment in moments], dim=1) for key in own if key in newest}
    rest = told_besides(newest, seen)
    ordered = sorted(rest, key=lambda key: (not has_rows(rest[key], rows), key))
    return seen | {key: rest[key] for key in ordered}


def told_besides(moment: Mapping[str, Any], own: Collection[str]) -> Batch:
    """What lerobot's preprocessor returned that is neither one of these observations nor an outcome."""
    return {key: value for key, value in moment.items() if key not in own and key not in _OUTCOMES}


def tensors(batch: Batch) -> dict[str, Tensor]:
    """What a batch holds in tensors."""
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}


def take(batch: Batch, picks: Sequence[int]) -> Batch:
    """Return some of a batch's observations, in this order.

    Raises:
        UnsupportedPolicy: it holds several, and a tensor that has other rows than they.
    """
    rows = rows_of(batch)
    if list(picks) == list(range(rows)):
        return dict(batch)
    pictures = _pictures(batch, rows)
    return {
        key: torch.cat([pictures[key][i] for i in picks])
        if key in pictures
        else _take(key, value, list(picks), rows)
        for key, value in batch.items()
    }


def _pictures(batch: Batch, rows: int) -> dict[str, Sequence[Tensor]]:
    """What Qwen's processors make of pictures, one part an observation, if all have as many pictures."""
    patches, sizes = batch.get(_PATCHES), batch.get(_SIZES)
    if not isinstance(patches, Tensor) or not isinstance(sizes, Tensor) or len(sizes) % rows:
        return {}
    counts = sizes.prod(-1).view(rows, -1).sum(1).tolist()
    if sum(counts) != len(patches):
        return {}
    return {_PATCHES: patches.split(counts), _SIZES: sizes.split(len(sizes) // rows)}


def _take(key: str, value: Any, picks: list[int], rows: int) -> Any:
    if has_rows(value, rows):
        if isinstance(value, Tensor):
            return value[picks]
        found = [value[i] for i in picks]
        return found[0] if len(found) == 1 and isinstance(found[0], Tensor) else found
    if isinstance(value, Tensor) and value.ndim:
        raise UnsupportedPolicy(
            f"of {rows} observations the policy's processors made {key!r} of shape {tuple(value.shape)}, "
            "which does not come apart by observation; give them one at a time"
        )
    return value


def join(batches: Sequence[Batch]) -> Batch:
    """Put the observations of several batches behind each other; what has no rows is the first one's.

    Tensors of different lengths, such as of patches, or texts that are padded to the longest, become a list,
    one an observation, for a policy that is run row by row; others refuse it (`check_even`).
    """
    first, rows = batches[0], [rows_of(batch) for batch in batches]
    if len(batches) == 1:
        return dict(first)
    return {key: _joined(key, [batch[key] for batch in batches], rows) for key in first}


def _joined(key: str, parts: Sequence[Any], rows: Sequence[int]) -> Any:
    first = parts[0]
    are_rows = all(has_rows(part, n) for part, n in zip(parts, rows, strict=True))
    if all(isinstance(part, Tensor) and part.ndim for part in parts):
        if are_rows and len({part.shape[1:] for part in parts}) == 1:
            return torch.cat(list(parts))
        return [
            _take(key, part, [i], n) if n > 1 else part
            for part, n in zip(parts, rows, strict=True)
            for i in range(n)
        ]
    if not are_rows and not any(_is_uneven(part) for part in parts):
        return first
    return [item for part in parts for item in (part if isinstance(part, list | tuple) else [part])]


def _is_uneven(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Tensor) for item in value)


def check_even(batch: Batch) -> None:
    """Raise `UnsupportedPolicy` if observations have tensors of different lengths."""
    for key, value in batch.items():
        if _is_uneven(value):
            shapes = ", ".join(str(tuple(item.shape)) for item in value)
            raise UnsupportedPolicy(
                f"observations cannot be put together: {key!r} has the shapes {shapes}; give texts of one "
                "length"
            )
