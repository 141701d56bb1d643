"""Mutations of limits files and URDFs: each is refused by one `VivaceError`, or says what others read in it.

Ten thousand of each:  python -m pytest tests/deploy/robots/test_limits_fuzz.py --limits-mutations=10000
"""

import math
import random
import re
import signal
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager

import numpy as np
import pytest
import yaml

from vivace.deploy.loop.guard import ActionGuard
from vivace.deploy.robots.limits import FIELDS, load_limits
from vivace.policies.errors import VivaceError
from vivace.policies.spec import ActionKind

LONGEST_S = 10.0
"""CPU time that no file may take."""
NAMES = ("pan.pos", "lift", "x.vel", "gripper")
KINDS = (ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE)
YAML = """# arm
limits:
  pan: {low: -1.5, high: 1.5, velocity: 2, acceleration: 8}
  lift: {low: -0.1, high: 0.1, step: 0.05}
  x.vel: {low: -0.3, high: 0.3}
  gripper:
    low: 0.0
    high: 100
"""
JOINTS = ("pan", "lift", "wheel")
URDF = """<?xml version="1.0"?>
<robot name="arm">
  <link name="base"/>
  <joint name="pan" type="revolute"><limit lower="-1" upper="2" velocity="3" effort="9"/></joint>
  <joint name="lift" type="prismatic"><limit lower="0" upper="0.5" velocity="0.1" effort="9"/></joint>
  <joint name="wheel" type="continuous"><limit velocity="7" effort="9"/></joint>
</robot>
"""
STRANGE = (
    "", "0", "-0", "1e999", "-1e999", "1e30", ".nan", ".inf", "nan", "inf", "0x10", "010", "1_000", "1:30",
    "1.", "true", "no", "null", "~", "'1'", '"1"', "!!float 1", "&a 1", "*a", "<<: *a", "[", "]", "{", "}",
    ":", "- ", "\t", "\n", "\n---\n", "%YAML 1.2\n", "? ", "|", ">", "#", "\x00", "\x85", "\ufeff", "ä", "<",
    ">", "/>", '"', "<limit/>", "<!DOCTYPE a>", "<!--", "-->", "&amp;", "&b;", "<![CDATA[", "[" * 3000,
    "<a>" * 3000, "- " * 999,
)  # fmt: skip


@contextmanager
def cpu_time_bounded():
    """Fail where something takes for ever, however busy the machine is."""

    def late(signum, frame):
        raise TimeoutError(f"more than {LONGEST_S} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def mutate(text: str, draw: random.Random) -> bytes:
    """Change numbers, words, lines or bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change, at = draw.randrange(7), draw.randrange(len(text) + 1)
        lines = text.splitlines(keepends=True)
        line = draw.randrange(len(lines)) if lines else 0
        words = list(re.finditer(r"-?[0-9.]+|[a-z_.]+", text))
        if change == 0 and words:
            word = draw.choice(words)
            text = text[: word.start()] + draw.choice(STRANGE) + text[word.end() :]
        elif change == 1 and words:
            word, other = draw.choice(words), draw.choice(words)
            text = text[: word.start()] + other.group() + text[word.end() :]
        elif change == 2:
            text = text[:at] + draw.choice(STRANGE) + text[at:]
        elif change == 3:
            text = text[:at] + text[at + draw.randrange(1, 9) :]
        elif change == 4 and lines:
            lines.insert(draw.randrange(len(lines)), lines[line])
            text = "".join(lines)
        elif change == 5 and lines:
            del lines[line]
            text = "".join(lines)
        elif change == 6:
            text = text[:at]
    data = text.encode()
    if draw.random() < 0.05:
        at = draw.randrange(len(data) + 1)
        data = data[:at] + bytes([draw.randrange(128, 256)]) + data[at:]
    return data


def read(path, data, names, kinds):
    """Return the limits of a damaged file, None if it is refused."""
    path.write_bytes(data)
    with cpu_time_bounded():
        try:
            return load_limits(path, names, kinds)
        except VivaceError as error:
            message = str(error)
    assert "\n" not in message
    assert len(message) < 2000
    return None


def check_sense(limits, kinds):
    """Whatever was read: nothing gets past it, and a robot may stand still."""
    none = np.full(len(kinds), np.inf)
    low, high = np.array(limits.low or -none), np.array(limits.high or none)
    for wild in (1e30, -1e30):
        allowed = ActionGuard(limits, kinds, 0.05).limit(np.full(len(kinds), wild))
        assert np.all((low <= allowed) & (allowed <= high))
    assert np.all((low <= 0) & (high >= 0) | (np.array(kinds) == ActionKind.ABSOLUTE))


@pytest.mark.parametrize("seed", range(3))
def test_damaged_yaml_is_refused_or_says_what_it_says(tmp_path, request, seed):
    draw, counts = random.Random(f"yaml{seed}"), {"refused": 0, "read": 0}
    for _ in range(request.config.getoption("--limits-mutations") // 3):
        data = mutate(YAML, draw)
        limits = read(tmp_path / "limits.yaml", data, NAMES, KINDS)
        counts["refused" if limits is None else "read"] += 1
        if limits is None:
            continue
        check_sense(limits, KINDS)
        said = yaml.safe_load(data)["limits"]
        for i, name in enumerate(NAMES):
            own = said.get(name, said.get(name.removesuffix(".pos"))) or {}
            for field, attribute in FIELDS.items():
                values = getattr(limits, attribute)
                found = None if values is None or math.isinf(values[i]) else values[i]
                assert found == (None if own.get(field) is None else float(own[field])), (data, name, field)
    assert min(counts.values()) > 0.05 * sum(counts.values()), counts


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_urdf_is_refused_or_says_what_it_says(tmp_path, request, seed):
    draw, counts = random.Random(f"urdf{seed}"), {"refused": 0, "read": 0}
    kinds = (ActionKind.ABSOLUTE,) * 3
    for _ in range(request.config.getoption("--limits-mutations") // 3):
        data = mutate(URDF, draw)
        limits = read(tmp_path / "arm.urdf", data, JOINTS, kinds)
        counts["refused" if limits is None else "read"] += 1
        if limits is None:
            continue
        check_sense(limits, kinds)
        joints = {joint.get("name"): joint for joint in ElementTree.fromstring(data).iter("joint")}
        for i, name in enumerate(JOINTS):
            limit = joints[name].find("limit")
            attributes = {} if limit is None else limit.attrib
            said = {
                key: float(attributes[key]) for key in ("lower", "upper", "velocity") if key in attributes
            }
            if joints[name].get("type") == "continuous":
                said = {"lower": -math.inf, "upper": math.inf} | {
                    k: v for k, v in said.items() if k == "velocity"
                }
            assert limits.low[i] == said.get("lower", 0.0), (data, name)
            assert limits.high[i] == said.get("upper", 0.0)
            speeds = limits.max_velocity or (math.inf,) * 3
            assert speeds[i] == said.get("velocity", math.inf)
    assert min(counts.values()) > 0.05 * sum(counts.values()), counts
