"""Limits from YAML and URDF: matched by name, and one clear line for every bad file."""

import math
import sys

import pytest

from vivace.deploy.limits import load_limits
from vivace.policies.errors import BadSetting
from vivace.policies.types import ActionKind

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
    limits = load_limits(path, ("lift", "wheel", "pan.pos"), (ActionKind.DELTA,) + (ActionKind.ABSOLUTE,) * 2)
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
    ("limits: {pan: {speed: 1}, lift: {}, gripper: {}}", r"'pan.pos' has \['speed'\]; it may have low, high"),
    ("limits: {pan: 3, lift: {}, gripper: {}}", "'pan.pos' has 3; it may have low"),
    ("limits: {pan: {low: fast}, lift: {}, gripper: {}}", "low of 'pan.pos' is 'fast'; a finite number"),
    ("limits: {pan: {low: .nan}, lift: {}, gripper: {}}", "low of 'pan.pos' is nan"),
    ("limits: {pan: {low: 2, high: 1}, lift: {}, gripper: {}}", "limits.yaml: limits have low .* above high"),
    ("limits: {pan: {velocity: 0}, lift: {}, gripper: {}}", "limits.yaml: max_velocity .* above 0"),
    ("urdf: none.urdf\nlimits: {}", "no URDF at .*none.urdf; its path is relative"),
])  # fmt: skip
def test_bad_yaml(file, text, message):
    with pytest.raises(BadSetting, match=message):
        load_limits(file(text), NAMES, KINDS)


@pytest.mark.parametrize(("text", "message"), [
    ("<robot", "is not XML"),
    ("<mujoco/>", "begins with <mujoco>; a URDF begins with <robot>"),
    ("<robot/>", "has no joint 'pan.pos'; it has none"),
    (URDF, "has no joint 'gripper'; it has pan, lift, wheel: name the action's other"),
    (URDF.replace('upper="2"', 'upper="two"'), "<limit> of joint 'pan' holds no number"),
    ('<robot><joint name="pan" type="revolute"/></robot>', "joint 'pan' has no <limit>"),
])  # fmt: skip
def test_bad_urdf(file, text, message):
    with pytest.raises(BadSetting, match=message):
        load_limits(file(text, "arm.urdf"), NAMES, KINDS)


def test_files_that_are_none(file, tmp_path, monkeypatch):
    with pytest.raises(BadSetting, match="no limits file at .*nowhere.yaml"):
        load_limits(tmp_path / "nowhere.yaml", NAMES, KINDS)
    with pytest.raises(BadSetting, match="ends in '.txt'; .yaml or .urdf is needed"):
        load_limits(file("", "limits.txt"), NAMES, KINDS)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BadSetting, match="needs the package pyyaml"):
        load_limits(file("limits: {}"), NAMES, KINDS)
