"""Plain data: what no annotation allows is refused by name, what JSON should not hold is not read at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from vivace.accel import plain_data
from vivace.accel.plain_data import MAX_DEPTH, build, check_plain, check_types, read_json
from vivace.policies.errors import BadSetting, PlanMismatch


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int
    share: float = 0.5
    on: bool = False
    rule: Literal["a", "b"] = "a"
    steps: tuple[tuple[int, ...], ...] = ()
    limit: int | None = None
    named: Mapping[str, float] | None = None
    note: Any = None


def test_lists_become_tuples_and_whole_numbers_floats():
    found = build(Settings, "x", {"count": 2, "share": 1, "steps": [[0, 1], []], "named": {"a": 2}})
    assert found == Settings(count=2, share=1.0, steps=((0, 1), ()), named={"a": 2.0})
    assert isinstance(found.share, float)
    check_types(found, "x")


@pytest.mark.parametrize(("values", "message"), [
    ({"count": 1.5}, r"x count is 1\.5; needed is a whole number"),
    ({"count": True}, "x count is True; needed is a whole number"),
    ({"count": "1"}, "x count is '1'; needed is a whole number"),
    ({"count": 2**63}, "x count is 9223372036854775808; needed is a whole number"),
    ({"count": 10**5000}, "x count is a number of thousands of digits; needed is a whole number"),
    ({"count": 1, "share": math.nan}, "x share is nan; needed is a finite number"),
    ({"count": 1, "share": 10**400}, r"x share is 10+…; needed is a finite number"),
    ({"count": 1, "on": 1}, "x on is 1; needed is true or false"),
    ({"count": 1, "rule": "c"}, "x rule is 'c'; needed is one of 'a', 'b'"),
    ({"count": 1, "steps": [[0], 3]}, r"x steps\[1\] is 3; needed is a list of a whole numbers"),
    ({"count": 1, "steps": [[0, None]]}, r"x steps\[0\]\[1\] is None; needed is a whole number"),
    ({"count": 1, "steps": "ab"}, "x steps is 'ab'; needed is a list"),
    ({"count": 1, "limit": "2"}, "x limit is '2'; needed is a whole number"),
    ({"count": 1, "named": {"a": "b"}}, r"x named\.a is 'b'; needed is a finite number"),
    ({"count": 1, "named": {3: 1.0}}, "a key of x named is 3; needed is text"),
    ({"count": 1, "named": []}, r"x named is \[\]; needed is an object"),
    ({"count": 1, "note": {"a": math.inf}}, r"x note\.a is inf; numbers are finite"),
    ({}, "x lacks 'count'; its fields: count, share"),
    ({"count": 1, "rate": 2}, "x has no option 'rate'; its options: count, limit"),
    (3, "x is 3; needed is an object"),
])  # fmt: skip
def test_a_field_of_another_type_is_named(values, message):
    with pytest.raises(BadSetting, match=message):
        build(Settings, "x", values)


def test_what_was_built_by_hand_is_checked_too():
    with pytest.raises(BadSetting, match=r"x steps\[0\] is 1; needed is a list"):
        check_types(Settings(count=1, steps=(1,)), "x")


@pytest.mark.parametrize(("value", "message"), [
    ({1: 2}, "it has the key 1; keys are text"),
    ({"a": {1, 2}}, r"it\.a is \{1, 2\}; numbers, text, lists and objects are plain data"),
    ([2**70], r"it\.0 is 1180591620717411303424; whole numbers have at most 63 bits"),
])  # fmt: skip
def test_what_json_cannot_hold_is_refused(value, message):
    with pytest.raises(BadSetting, match=message):
        check_plain(value, "it")


def test_depth_is_bounded():
    deep: Any = 0
    for _ in range(MAX_DEPTH):
        deep = [deep]
    check_plain(deep, "it")
    with pytest.raises(BadSetting, match=rf"is nested too deeply; at most {MAX_DEPTH} levels are read"):
        check_plain([deep], "it")


@pytest.mark.parametrize(("text", "message"), [
    (b"{", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    (b"[" + b"9" * 5000 + b"]", "is not JSON"),
    (b"[" * 100_000, "is nested too deeply"),
    (b'{"a": {"b": 1, "b": 2}}', "key 'b' is there twice in one object"),
])  # fmt: skip
def test_broken_files_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(PlanMismatch, match=message):
        read_json(tmp_path / "x.json")


def test_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_data, "MAX_BYTES", 10)
    (tmp_path / "x.json").write_text("[" + "1," * 10 + "1]")
    with pytest.raises(PlanMismatch, match="has 23 bytes; at most 10 are read"):
        read_json(tmp_path / "x.json")
