"""Plain data: what no annotation allows is refused by name, what JSON should not hold is not read at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from vivace.policies import plain_data
from vivace.policies.errors import BadSetting
from vivace.policies.plain_data import (
    MAX_DEPTH,
    Between,
    Longest,
    build,
    check_plain,
    check_types,
    plain,
    read_json,
)


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
    with pytest.raises(BadSetting, match=message):
        read_json(tmp_path / "x.json")


def test_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_data, "MAX_BYTES", 10)
    (tmp_path / "x.json").write_text("[" + "1," * 10 + "1]")
    with pytest.raises(BadSetting, match="has more than 10 bytes; no more are read"):
        read_json(tmp_path / "x.json")


class Kind(StrEnum):
    ONE = "one"
    TWO = "two"


@dataclass(frozen=True)
class Part:
    kind: Kind
    shape: Annotated[tuple[int, ...], Longest(2)] = ()
    count: Annotated[int, Between(1, 64)] | None = 1


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    named: Mapping[str, Part]
    values: np.ndarray
    pair: tuple[int, str] = (0, "")
    name: Annotated[str, Longest(5)] = ""
    free: Mapping[str, Any] = field(default_factory=dict)


WHOLE = {
    "parts": [{"kind": "one", "shape": [1, 2], "count": 3}, {"kind": "two", "shape": [], "count": None}],
    "named": {"a": {"kind": "two", "shape": [], "count": 1}},
    "values": [[0.1, 2], [3, 4]],
    "pair": [1, "b"],
    "name": "abc",
    "free": {"x": [1, None, "y"]},
}


def test_dataclasses_hold_dataclasses_enumerations_and_arrays():
    found = build(Whole, "x", WHOLE)
    assert found.parts == (Part(Kind.ONE, (1, 2), 3), Part(Kind.TWO, (), None))
    assert isinstance(found.parts[0].kind, Kind)
    assert (found.named, found.pair) == ({"a": Part(Kind.TWO)}, (1, "b"))
    assert (found.values.dtype, found.values.shape) == (np.float32, (2, 2))
    check_types(found, "x")
    again = build(Whole, "x", plain(found))
    assert plain(again) == plain(found)
    assert plain(found) | {"values": 0} == WHOLE | {"values": 0}


@pytest.mark.parametrize(("values", "message"), [
    ({"parts": [{"kind": "three"}]}, r"x parts\[0\] kind is 'three'; needed is one of 'one', 'two'"),
    ({"parts": [3]}, r"x parts\[0\] is 3; needed is an object"),
    ({"named": {"a": {"kind": "one", "b": 1}}}, r"x named\.a has no option 'b'; its options: count, kind"),
    ({"parts": [{"kind": "one", "shape": [1, 2, 3]}]}, r"shape has a length of 3; at most 2 is read"),
    ({"parts": [{"kind": "one", "count": 65}]}, r"count is 65; needed: 1\.\.64"),
    ({"parts": [{"kind": "one", "count": 1.0}]}, r"count is 1\.0; needed is a whole number"),
    ({"name": "abcdef"}, "x name has a length of 6; at most 5 is read"),
    ({"values": [[1], [1, 2]]}, "x values is .*; needed are lists of finite numbers, all of one length"),
    ({"values": [True]}, "x values is .*; needed are lists of finite numbers"),
    ({"values": "1"}, "x values is '1'; needed are lists of finite numbers"),
    ({"values": [math.nan]}, "x values.0 is nan; numbers are finite"),
    ({"values": [1e300]}, "x values is .*; needed are numbers that 32 bits can hold"),
    ({"pair": [1]}, "x pair has 1 entries; needed are 2"),
    ({"free": {"line\nbreak": {1, 2}}}, r"x free\.'line\\nbreak' is \{1, 2\}"),
    ({"y" * 10_000: 1}, r"x has no option 'y{59}…'; its options"),
])  # fmt: skip
def test_a_part_of_another_form_is_named_in_one_short_line(values, message):
    with pytest.raises(BadSetting, match=message) as caught:
        build(Whole, "x", WHOLE | values)
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_that_comes_twice_behind_many_others_is_found_quickly(tmp_path):
    many = ",".join(f'"k{i}":0' for i in range(200_000))
    (tmp_path / "x.json").write_text(f'{{{many},"k199999":1}}')
    with pytest.raises(BadSetting, match="key 'k199999' is there twice"):
        read_json(tmp_path / "x.json")
