"""Limits from YAML and URDF: matched by name, and one clear line for every bad file."""

import math
import os
import sys

import pytest

from vivace.deploy.robots.limits import load_limits
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind

NAMES = ("pan.pos", "lift", "gripper")
KINDS = (ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.ABSOLUTE)
URDF = """<robot name="arm">
  <joint name="pan" type="revolute"><limit lower="-1" upper="2" velocity="3" effort="9"/></joint>
  <joint name="lift" type="prismatic"><limit lower="0" upper="0.5" velocity="0.1" effort="9"/></joint>
  <joint name="wheel" type="continuous"><limit velocity="7" effort="9"/></joint>
  <joint name="base" type="fixed"/>
</robot>"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="limits.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_yaml_names_every_dimension_in_any_order(file):
    path = file("""limits:
  gripper: {}
  pan: {low: -1.5, high: 1.5, velocity: 2, acceleration: 8}
  lift: {step: 0.1}
""")
    limits = load_limits(path, NAMES, KINDS)
    inf = math.inf
    assert limits.low == (-1.5, -inf, -inf)
    assert limits.high == (1.5, inf, inf)
    assert limits.max_step == (inf, 0.1, inf)
    assert limits.max_velocity == (2, inf, inf)
    assert limits.max_acceleration == (8, inf, inf)


def test_a_urdf_limits_ranges_of_targets_and_speeds_of_all(file):
    path = file(URDF, "arm.urdf")
    limits = load_limits(path, ("lift", "wheel", "pan"), (ActionKind.DELTA,) + (ActionKind.ABSOLUTE,) * 2)
    assert limits.low == (-math.inf, -math.inf, -1)
    assert limits.high == (math.inf, math.inf, 2)
    assert limits.max_velocity == (0.1, 7, 3)
    assert (limits.max_step, limits.max_acceleration) == (None, None)


def test_yaml_includes_a_urdf_overrides_it_and_gives_the_rest(file):
    file(URDF, "arm.urdf")
    path = file("""urdf: arm.urdf
degrees: true
limits:
  gripper: {low: 0, high: 100}
  pan: {high: 90}
""")
    limits = load_limits(path, NAMES, KINDS)
    assert limits.low == pytest.approx((math.degrees(-1), -math.inf, 0))
    assert limits.high == (90, math.inf, 100)
    assert limits.max_velocity == pytest.approx((math.degrees(3), 0.1, math.inf)), "metres are no angle"


@pytest.mark.parametrize(("text", "message"), [
    ("limits: [", "is not YAML"),
    ("[1, 2]", "must hold 'limits: .*it holds list"),
    ("joints: {}", r"must hold 'limits: .*it holds \['joints'\]"),
    ("limits: {elbow: {}}", "names 'elbow', but the action's dimensions are pan.pos, lift, gripper"),
    ("limits: {pan: {}, lift: {}}", "does not name gripper; name every dimension"),
    ("limits: {pan: {speed: 1}, lift: {}, gripper: {}}", r"'pan' has \['speed'\]; it may have low, high"),
    ("limits: {pan: 3, lift: {}, gripper: {}}", "'pan' has 3.0; it may have low"),
    ("limits: {pan: {low: fast}, lift: {}, gripper: {}}", "low of 'pan' is 'fast'; a finite number"),
    ("limits: {pan: {low: .nan}, lift: {}, gripper: {}}", "low of 'pan' is '.nan'"),
    ("limits: {pan: {low: .inf}, lift: {}, gripper: {}}", "low of 'pan' is '.inf'; a finite number"),
    ("limits: {pan: {low: -1e999}, lift: {}, gripper: {}}", "low of 'pan' is -inf; a finite number"),
    ("limits: {pan: {low: true}, lift: {}, gripper: {}}", "low of 'pan' is True; a finite number"),
    ("limits: {pan: {low: '1'}, lift: {}, gripper: {}}", "low of 'pan' is '1'; a finite number"),
    ("limits: {pan: {low: 010}, lift: {}, gripper: {}}", "low of 'pan' is '010'"),
    ("limits: {pan: {low: 1:30}, lift: {}, gripper: {}}", "low of 'pan' is '1:30'"),
    ("limits: {pan: {low: 2, high: 1}, lift: {}, gripper: {}}", "has low 2, high 1; low below high"),
    ("limits: {pan: {low: 0, high: 0}, lift: {}, gripper: {}}", "has low 0, high 0; low below high"),
    ("limits: {pan: {velocity: 0}, lift: {}, gripper: {}}", "velocity of 'pan.pos' is 0; above 0 is needed"),
    ("limits: {pan: {}, lift: {low: 0.1}, gripper: {}}", "'lift' is a delta, and 0.1 to inf lets it never"),
    ("urdf: none.urdf\nlimits: {}", "no URDF at .*none.urdf; its path is relative"),
    ("urdf: [arm.urdf]\nlimits: {}", r"has urdf=\['arm.urdf'\] and degrees=None; a path, and true or false"),
    ("urdf: a.urdf\ndegrees: 'false'\nlimits: {}", "degrees='false'; a path, and true or false, are needed"),
    ("urdf: a.urdf\ndegrees: yes\nlimits: {}", "degrees='yes'; a path, and true or false"),
    ("urdf: a.urdf\ndegrees: 1\nlimits: {}", "degrees=1.0; a path, and true or false"),
    ("degrees: true\nlimits: {pan: {}, lift: {}, gripper: {}}", "has degrees and no urdf"),
    ("limits:\n  pan: {}\n  lift: {}\n  pan: {low: 1}", "has 'pan' twice in line 4"),
    ("limits: {pan: {}, pan.pos: {}, lift: {}}", "names 'pan.pos' twice, with and without its end"),
    ("limits: {pan: {low: 1, low: 2}}", "has 'low' twice in line 1"),
    ("limits: {pan: &a {}, lift: *a, gripper: {}}", "has an anchor or alias in line 1; write it out"),
    ("limits: {pan: {<<: *a}}", "has an anchor or alias"),
    ("limits: {&a pan: {}}", "has a key that is no plain text"),
    ("limits: {pan: !!python/object:os.system {}}", "has a tag, 'tag:yaml.org,2002:python/object:os.system'"),
    ("limits: {pan: {low: !!float 1}}", "has a tag, "),
    ("limits: {}\n---\nlimits: {}", "has several documents"),
    ("limits: " + "[" * 20_000, "has more than 8 levels"),
    ("- " * 20_000, "has more than 8 levels"),
    ("limits: {? [a] : b}", "has a key that is no plain text"),
    ("", "it holds NoneType"),
])  # fmt: skip
def test_bad_yaml(file, text, message):
    with pytest.raises(BadSetting, match=message):
        load_limits(file(text), NAMES, KINDS)


@pytest.mark.parametrize(("text", "message"), [
    ("<robot", "is not XML"),
    ("<mujoco/>", "begins with <mujoco>; a URDF begins with <robot>"),
    ("<robot/>", "has no joint 'pan'; it has none"),
    (URDF, "has no joint 'gripper'; it has pan, lift, wheel: name the action's other"),
    (URDF.replace('upper="2"', 'upper="two"'), "upper of joint 'pan' is 'two'; a finite number is needed"),
    (URDF.replace('upper="2"', 'upper="inf"'), "upper of joint 'pan' is 'inf'; a finite number"),
    (URDF.replace('upper="2"', 'upper="1_0"'), "upper of joint 'pan' is '1_0'; a finite number"),
    (URDF.replace('velocity="3"', 'velocity="nan"'), "velocity of joint 'pan' is 'nan'"),
    (URDF.replace('velocity="3"', 'velocity="0"'), "joint 'pan' has velocity=0, so that it could not move"),
    ('<robot><joint name="pan" type="revolute"/></robot>', "joint 'pan' has no range, so that it could not"),
    (URDF.replace('lower="-1" upper="2"', ""), "joint 'pan' has no range, so that it could not"),
    (URDF.replace('lower="-1" upper="2"', 'lower="0" upper="0"'), "'pan' has lower=0, upper=0, so that"),
    (URDF.replace('lower="-1" upper="2"', 'lower="2" upper="1"'), "'pan' has lower=2, upper=1, so that"),
    (URDF.replace('name="wheel"', 'name="pan"'), "has joint 'pan' twice"),
    (URDF.replace("<limit", "<limit/><limit", 1), "joint 'pan' has 2 <limit>; one is needed"),
    ("<robot>" + "<a>" * 5000, "has more than 100 levels"),
    ('<?xml version="1.0" encoding="UTF-7"?><robot/>', "says that it is 'UTF-7'; a URDF in UTF-8 is needed"),
    ('<!DOCTYPE r [<!ENTITY a "b">]><robot/>', "has a document type or entities"),
])  # fmt: skip
def test_bad_urdf(file, text, message):
    with pytest.raises(BadSetting, match=message):
        load_limits(file(text, "arm.urdf"), ("pan", "lift", "gripper"), KINDS)


def test_lerobots_names_beside_a_urdf_say_their_units(file):
    path, names, kinds = file(URDF, "arm.urdf"), ("pan.pos", "lift.pos"), (ActionKind.ABSOLUTE,) * 2
    needed = (
        "in radians, but 'pan.pos' is a name of lerobot's, .* says degrees: true .*; for -100…100 give low"
    )
    with pytest.raises(BadSetting, match=needed):
        load_limits(path, names, kinds)
    said = "urdf: arm.urdf\nlimits: {lift: {}}"
    with pytest.raises(BadSetting, match=needed):
        load_limits(file(said), names, kinds)
    assert load_limits(file("degrees: false\n" + said), names, kinds).high[0] == 2
    assert load_limits(file("degrees: true\n" + said), names, kinds).high[0] == pytest.approx(
        114.59, abs=0.01
    )
    own = "urdf: arm.urdf\nlimits: {pan: {low: -100, high: 100, velocity: 300}, lift: {}}"
    assert load_limits(file(own), names, kinds).low == (-100, 0), "metres are metres"


def test_a_range_that_an_exporter_left_empty_may_be_given_in_the_yaml(file):
    file(URDF.replace('lower="-1" upper="2" velocity="3"', 'lower="0" upper="0" velocity="0"'), "arm.urdf")
    own = "urdf: arm.urdf\nlimits: {pan: {low: -1, high: 1, velocity: 2}, lift: {}}"
    assert load_limits(file(own), ("pan", "lift"), KINDS[:2]).high[0] == 1
    with pytest.raises(BadSetting, match="joint 'pan' has velocity=0"):
        load_limits(file(own.replace(", velocity: 2", "")), ("pan", "lift"), KINDS[:2])
    with pytest.raises(BadSetting, match="joint 'pan' has lower=0, upper=0"):
        load_limits(file(own.replace("low: -1, ", "")), ("pan", "lift"), KINDS[:2])


def test_only_small_regular_files_in_utf_8_are_opened(file, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "null.urdf").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "folder.yaml", "null.urdf"):
        with pytest.raises(BadSetting, match=f"{name} is no regular file"):
            load_limits(tmp_path / name, NAMES, KINDS)
    with pytest.raises(BadSetting, match="has more than 65536 bytes; no such file needs as many"):
        load_limits(file("#" * 70_000), NAMES, KINDS)
    with pytest.raises(BadSetting, match="has more than 4000000 bytes"):
        load_limits(file(" " * 4_000_001, "arm.urdf"), NAMES, KINDS)
    for encoding in ("utf-16", "latin-1"):
        path = file("", "odd.yaml")
        path.write_bytes("limits: {arm_ä: {}}".encode(encoding))
        with pytest.raises(BadSetting, match="odd.yaml is not UTF-8"):
            load_limits(path, NAMES, KINDS)
    with pytest.raises(BadSetting, match="is not YAML .*special characters are not allowed"):
        load_limits(file("limits: {\0}"), NAMES, KINDS)


def test_files_that_are_none(file, tmp_path, monkeypatch):
    with pytest.raises(BadSetting, match="no limits file at .*nowhere.yaml"):
        load_limits(tmp_path / "nowhere.yaml", NAMES, KINDS)
    with pytest.raises(BadSetting, match="ends in '.txt'; .yaml or .urdf is needed"):
        load_limits(file("", "limits.txt"), NAMES, KINDS)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BadSetting, match="needs the package pyyaml"):
        load_limits(file("limits: {}"), NAMES, KINDS)
