"""What a profile says of plans: from planted times exactly, and of what it lacks nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vivace.eval.profile.ledger import Part
from vivace.eval.profile.profile import Check, Profile, Unpredictable, call_s
from vivace.policies.errors import BadSetting

BITS = json.dumps([["bits", {"action": "int8"}]])


def planted(**changes) -> Profile:
    """A machine on which everything takes round times."""
    profile = Profile(
        machine={"cpu": "an old one", "device": "cpu", "threads": 1, "cores": 2, "dtype": "float32"},
        versions={},
        commit=None,
        fingerprint={"policy_type": "x", "config": "", "weights": "", "processors": "", "blocks": ["a.0"]},
        continues=False,
        ways={
            "[]": {"prepare": [(0, 0.5)], "denoise": [(0, 0.25)], "denoise/a.0": [(100, 1.0), (200, 1.5)]},
            BITS: {"prepare": [(0, 0.5)], "denoise": [(0, 0.25)], "denoise/a.0": [(100, 0.5)]},
        },
        spread=(0.5, 1.0, 2.0),
        checks=(Check("one", 1.0, 1.25), Check("two", 2.0, 1.0)),
    )
    return replace(profile, **changes)


def chunk(flops: int, calls: float) -> list[Part]:
    """What is made ready once, then so many steps of one block."""
    return [Part("prepare", "", 0, 1), Part("denoise", "", 0, calls), Part("denoise", "a.0", flops, calls)]


@pytest.mark.parametrize(
    ("way", "flops", "calls", "expected_s"),
    [
        ("[]", 100, 1, 1.75),
        ("[]", 100, 4, 0.5 + 4 * 1.25),
        ("[]", 150, 4, 0.5 + 4 * (0.25 + 1.25)),
        ("[]", 50, 4, 0.5 + 4 * (0.25 + 0.5)),
        ("[]", 400, 4, 0.5 + 4 * (0.25 + 3.0)),
        (BITS, 100, 4, 0.5 + 4 * (0.25 + 0.5)),
    ],
)
def test_planted_times_are_predicted_exactly(way, flops, calls, expected_s):
    assert planted().chunk_s(way, chunk(flops, calls)) == pytest.approx(expected_s, rel=1e-12)


def test_what_moves_data_alone_takes_its_time_whatever_is_computed():
    assert call_s([(0, 0.25)], 0) == call_s([(0, 0.25)], 1000) == 0.25
    assert call_s([(0, 1.0), (100, 2.0)], 50) == 1.5


def test_times_vary_as_they_do_there_and_the_margin_is_the_largest_shortfall():
    profile = planted()
    assert profile.times_s(3.0) == [1.5, 3.0, 6.0]
    assert profile.margin == pytest.approx(0.25)
    assert "an old one, 1 threads" in profile.told
    assert "-50% … +25%" in profile.told
    assert "with 25% to spare" in profile.told


def test_what_it_lacks_is_named():
    with pytest.raises(Unpredictable, match="no times of precision \\(action bfloat16\\)"):
        planted().chunk_s(json.dumps([["precision", {"action": "bfloat16"}]]), chunk(1, 1))
    with pytest.raises(Unpredictable, match="no time of vision/b.0"):
        planted().chunk_s("[]", [Part("vision", "b.0", 1, 1)])


def test_it_is_read_as_it_was_written(tmp_path):
    planted().save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    assert json.dumps(again.to_json()) == json.dumps(planted().to_json())
    assert again.chunk_s(BITS, chunk(100, 4)) == planted().chunk_s(BITS, chunk(100, 4))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "plan"}, "is not a profile"),
        ({"version": 2}, "is a profile of version 2, this vivace reads 1"),
        ({"ways": {}}, "is a broken profile"),
        ({"ways": {"[]": {"prepare": []}}}, "is a broken profile"),
        ({"ways": {"[]": {"prepare": [[0, "soon"]]}}}, "is a broken profile"),
        ({"ways": {"[]": {"prepare": [[0, -1.0]]}}}, "is a broken profile"),
        ({"ways": {"not json": {"prepare": [[0, 1.0]]}}}, "is a broken profile"),
        ({"spread": []}, "is a broken profile"),
        ({"machine": {}}, "is a broken profile"),
        ({"fingerprint": {}}, "is a broken profile"),
        ({"checks": [{"label": "one"}]}, "is a broken profile"),
        ({"surprise": 1}, "is a broken profile"),
    ],
)
def test_a_broken_one_is_refused_in_a_line(tmp_path: Path, change, told):
    file = tmp_path / "p.json"
    file.write_text(json.dumps(planted().to_json() | change))
    with pytest.raises(BadSetting, match=told) as error:
        Profile.load(file)
    assert "\n" not in str(error.value)
    assert "vivace bench" in str(error.value)


def test_half_a_file_and_none_are_refused(tmp_path: Path):
    file = tmp_path / "p.json"
    with pytest.raises(BadSetting, match="no profile at"):
        Profile.load(file)
    file.write_text(json.dumps(planted().to_json())[:100])
    with pytest.raises(BadSetting, match="is not a profile"):
        Profile.load(file)
