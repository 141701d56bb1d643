"""What an ONNX file refers to outside itself, read by us before ONNX Runtime opens anything.

ONNX Runtime 1.23 reads external data from wherever a graph says: `../../x`, absolute paths, links. So the
file's own bytes are walked here, as far as tensors with external data can be: through graphs, their nodes'
attributes, graphs inside these, functions and training parts. A part in which the word "location" does not
occur holds no external data, whatever it is, and is passed over at the speed of `bytes.find`.

The wire format is protobuf's (protobuf.dev/programming-guides/encoding), the numbers are onnx.proto's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from vivace.policies.errors import BadBundle
from vivace.policies.plain_data import shown

MAX_BYTES = 2**31 - 1
"""Of a graph's file, as protobuf's own bound."""
_MAX_DEPTH = 64
"""Of messages inside messages; a graph in an attribute of a graph takes 3."""
_KEY = b"location"
_EXTERNAL = 13
"""Field of a TensorProto."""
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {_EXTERNAL: "entry"},
    "entry": {},
}
"""Message -> field -> message in it, of those that may hold tensors."""


@dataclass(frozen=True)
class External:
    """Where the numbers of one tensor are."""

    file: str
    """Path inside the bundle's folder."""
    offset: int
    length: int


def external_data(data: bytes, file: str) -> list[External]:
    """Return where the tensors of a graph have their numbers, if not in the graph.

    Args:
        data: of the graph's file.
        file: its path inside the bundle's folder.

    Raises:
        BadBundle: it is damaged, or refers to a place where nothing of a bundle is.
    """
    if len(data) > MAX_BYTES:
        raise BadBundle(f"{file} has {len(data)} bytes; graphs have at most {MAX_BYTES}")
    if b"EPContext" in data:  # its node names files, for providers that compile
        raise BadBundle(f"{file} holds a graph that a provider compiled; export it again without")
    try:
        return [_external(entries, file) for entries in _tensors(data, 0, len(data), "model", 0)]
    except (IndexError, UnicodeDecodeError) as error:
        raise BadBundle(f"{file} is damaged, or is no ONNX; export it again") from error


def _external(entries: dict[str, str], file: str) -> External:
    """External data as a tensor says it: name -> text."""
    location = entries.get("location", "")
    numbers = [entries.get(name, "") for name in ("offset", "length")]
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        raise BadBundle(
            f"{file} has a tensor at offset {shown(numbers[0])} of length {shown(numbers[1])}; whole numbers "
            "are needed; export it again"
        )
    return External(str(PurePosixPath(file).parent / inside(location)), int(numbers[0]), int(numbers[1]))


def inside(name: str) -> str:
    """Return a path of a file, if it can only be inside the folder it starts from.

    Raises:
        BadBundle: it is absolute, goes up, or holds what no name of ours does.
    """
    parts = name.split("/")
    is_plain = all(part.strip(".") and part.isascii() and _is_word(part) for part in parts)
    if not is_plain or len(name) > 200:
        raise BadBundle(
            f"the file name {shown(name)} may be outside the folder; names of a bundle are letters, digits "
            "and ._- between slashes; export it again"
        )
    return name


def _is_word(part: str) -> bool:
    return part.replace(".", "").replace("-", "").replace("_", "").isalnum()


def _tensors(data: bytes, start: int, end: int, message: str, depth: int) -> Iterator[dict[str, str]]:
    """Entries of external data of every tensor that has some, between two places of the file."""
    if depth > _MAX_DEPTH:
        raise BadBundle(f"a graph is nested more than {_MAX_DEPTH} deep; export it again")
    entries: dict[str, str] = {}
    for number, first, last in _fields(data, start, end):
        kind = _INSIDE[message].get(number)
        if kind is None or data.find(_KEY, first, last) < 0 and kind != "entry":
            continue
        if kind == "entry":
            key, value = _entry(data, first, last)
            if key in entries:
                raise BadBundle(f"a tensor says its {shown(key)} twice; export it again")
            entries[key] = value
        else:
            yield from _tensors(data, first, last, kind, depth + 1)
    if "location" in entries:
        yield entries


def _entry(data: bytes, start: int, end: int) -> tuple[str, str]:
    found = {number: data[first:last].decode() for number, first, last in _fields(data, start, end)}
    return found.get(1, ""), found.get(2, "")


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of every field with a length, between two places; raises `IndexError`."""
    place = start
    while place < end:
        tag, place = _varint(data, place, end)
        if tag >= 2**32:  # protobuf would take its lower half
            raise IndexError
        kind = tag & 7
        if kind == 2:
            length, place = _varint(data, place, end)
            if length > end - place:
                raise IndexError
            yield tag >> 3, place, place + length
            place += length
        elif kind == 0:
            _, place = _varint(data, place, end)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:  # groups, which onnx has not
            raise IndexError
    if place != end:
        raise IndexError


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise IndexError
