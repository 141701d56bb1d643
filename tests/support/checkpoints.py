"""A saved checkpoint of every policy type that is built small: lerobot's own, and ours, of the same robot."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lerobot_policies import TASK, TYPES, features, saved, statistics

from vivace.eval.training.fit import save
from vivace.policies.families.cogact.policy import make_cogact_pre_post_processors
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.families.token_vla.policy import make_token_vla_pre_post_processors
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import ADAPTERS
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer, tiny_token_vla


def _dp_transformer() -> tuple[Any, ...]:
    policy = tiny_dp_transformer(**features((64, 96)))
    return policy, *make_dp_transformer_pre_post_processors(policy.config, statistics(policy.config))


def _vla(make: Callable[..., Any], processors: Callable[..., Any]) -> tuple[Any, ...]:
    policy = make(**features((32, 32), state=False), max_tokens=40)
    return policy, *processors(policy.config, statistics(policy.config), train_tokenizer([TASK]))


_OURS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "dp_transformer": _dp_transformer,
    "cogact": lambda: _vla(tiny_cogact, make_cogact_pre_post_processors),
    "token_vla": lambda: _vla(tiny_token_vla, make_token_vla_pre_post_processors),
}
"""Type -> policy and processors, of those that lerobot lacks."""
OURS = tuple(_OURS)
EVERY = (*OURS, *TYPES)
ADAPTED = tuple(kind for kind in ADAPTERS.names() if ADAPTERS.find(kind).__module__.startswith("vivace."))
"""Types that come apart by an adapter of ours."""


def checkpoint(kind: str) -> Path:
    """The checkpoint folder of a type, saved once a test session. Nobody may write into it."""
    return saved(kind) if kind in TYPES else _saved_ours(kind)


@cache
def _saved_ours(kind: str) -> Path:
    folder = Path(_session().name) / kind
    save(*_OURS[kind](), folder)
    return folder


@cache
def _session() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with the test session."""
    return tempfile.TemporaryDirectory(prefix="our-policies-")
