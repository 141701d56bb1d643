"""What a URDF says of its joints' limits, read strictly: no empty range, no number that is none."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vivace.deploy.system.small_text import read_text
from vivace.policies.errors import BadSetting

_LARGEST, _DEEPEST = 4_000_000, 100
_MOVING = ("revolute", "prismatic", "continuous")
_ENCODING = ("utf-8", "utf8", "us-ascii", "ascii")


@dataclass(frozen=True)
class Joint:
    """A joint that moves."""

    name: str
    type: str
    """revolute, prismatic or continuous."""
    limit: Mapping[str, str] | None
    """Attributes of its <limit>; None if it has none."""
    where: str
    """The file, for messages."""

    @property
    def is_angle(self) -> bool:
        """Whether it turns, so that its limits are in radians."""
        return self.type != "prismatic"

    def range(self) -> tuple[float, float] | None:
        """Return (lower, upper) [rad or m], None of a joint that turns for ever.

        Raises:
            BadSetting: it has no range or an empty one, as exporters leave it.
        """
        if self.type == "continuous":
            return None
        given = {end: self._number(end) for end in ("lower", "upper") if end in (self.limit or {})}
        low, high = given.get("lower", 0.0), given.get("upper", 0.0)  # URDF: what is left out is 0
        if not low < high:
            found = f"lower={low:g}, upper={high:g}" if given else "no range"
            raise BadSetting(
                f"{self.where}: joint {self.name!r} has {found}, so that it could not move; give lower and "
                "upper, or low and high of this joint in a YAML file that includes the URDF"
            )
        return low, high

    def velocity(self) -> float | None:
        """Return the largest speed [rad/s or m/s], None if it says none; raises `BadSetting` as `range`."""
        if "velocity" not in (self.limit or {}):
            return None
        speed = self._number("velocity")
        if not speed > 0:
            raise BadSetting(
                f"{self.where}: joint {self.name!r} has velocity={speed:g}, so that it could not move; give "
                "it above 0, or velocity of this joint in a YAML file that includes the URDF"
            )
        return speed

    def _number(self, attribute: str) -> float:
        text = (self.limit or {})[attribute]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in text:
            raise BadSetting(
                f"{self.where}: {attribute} of joint {self.name!r} is {text[:40]!r}; a finite number is "
                "needed"
            )
        return value


def read_urdf(path: Path) -> dict[str, Joint]:
    """Return the joints that move, by name.

    Raises:
        BadSetting: the file is no URDF, has a joint twice, or more than one <limit> in a joint.
    """
    root = _parse(path, read_text(path, _LARGEST, "URDF"))
    if root.tag != "robot":
        raise BadSetting(f"{path} begins with <{root.tag}>; a URDF begins with <robot>")
    joints: dict[str, Joint] = {}
    seen = set()
    for element in root.findall("joint"):
        name, kind, limits = element.get("name", ""), element.get("type", ""), element.findall("limit")
        if name in seen:
            raise BadSetting(f"{path} has joint {name!r} twice; each may be there once")
        seen.add(name)
        if len(limits) > 1:
            raise BadSetting(f"{path}: joint {name!r} has {len(limits)} <limit>; one is needed")
        if kind in _MOVING:
            joints[name] = Joint(name, kind, dict(limits[0].attrib) if limits else None, str(path))
    return joints


class _Shallow(ElementTree.TreeBuilder):
    """Refuses what is nested deeper than any robot's description."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:  # type: ignore[override]
        """Open an element."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise BadSetting(f"it has more than {_DEEPEST} levels")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        """Close an element."""
        self.depth -= 1
        return super().end(tag)


def _parse(path: Path, text: str) -> ElementTree.Element:
    declared = _encoding(text)
    if declared.lower() not in _ENCODING:
        raise BadSetting(f"{path} says that it is {declared[:40]!r}; a URDF in UTF-8 is needed")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadSetting(f"{path} has a document type or entities; a plain URDF is needed: run xacro on it")
    parser = ElementTree.XMLParser(target=_Shallow())
    try:
        parser.feed(text)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        raise BadSetting(f"{path} is not XML ({error}); export the URDF again") from error
    except BadSetting as error:
        raise BadSetting(f"{path} is no URDF: {error}") from error
    return root


def _encoding(text: str) -> str:
    """Return the encoding an XML declaration names, UTF-8 without."""
    declaration = (
        text.lstrip("\ufeff").partition("?>")[0] if text.lstrip("\ufeff").startswith("<?xml") else ""
    )
    _, found, rest = declaration.partition("encoding")
    return rest.strip(" \t\r\n='\"").split("'")[0].split('"')[0] if found else "utf-8"
