"""Weights in several files, as transformers and huggingface_hub save large ones.

    model.safetensors.index.json            {"weight_map": {name of a tensor: file}}
    model-00001-of-00002.safetensors …      beside it

lerobot's classes read one file, model.safetensors, each in its own way. So they are shown one: the shards put
behind each other, byte for byte and never all in memory, for as long as the policy is loaded.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from safetensors import SafetensorError, safe_open

from vivace.policies.checkpoint.find import INDEX, WEIGHTS
from vivace.policies.checkpoint.manifest import read_manifest
from vivace.policies.errors import PolicyNotFound, in_one_line
from vivace.policies.plain_data import shown

_LENGTH = 8
"""Bytes that say how long the header of a file is, which describes its tensors as JSON."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a folder's weights are in: one, as lerobot has it, or those of the index.

    Raises:
        PolicyNotFound: the index is damaged, names a file outside of its folder, or one is missing.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() or not index.is_file():
        return [single]
    places = read_manifest(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise PolicyNotFound(f"{index} has no weight_map, which says what is where; copy it again")
    for place in places.values():
        if not isinstance(place, str) or Path(place).name != place:
            raise PolicyNotFound(f"{index} names {shown(place)}, which is outside of its folder")
    files = [folder / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise PolicyNotFound(f"{folder} lacks {', '.join(missing[:4])}, which {INDEX} names; copy it too")
    return files


def tensor_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the tensors of a folder's weights, each in exactly one place.

    Raises:
        PolicyNotFound: as of `weight_files`; a file is no safetensors, or holds other tensors than the index
            says.
    """
    files = weight_files(folder)
    found = {file.name: _names(file) for file in files}
    if len(files) > 1 or files[0].name != WEIGHTS:
        _check_places(folder / INDEX, found)
    return tuple(name for names in found.values() for name in names)


@contextmanager
def in_one_file(folder: Path) -> Iterator[Path]:
    """Give a folder with all weights in model.safetensors: the same one, or one for now.

    Raises:
        PolicyNotFound: as of `weight_files`; there is no room for them.
    """
    files = weight_files(folder)
    if files == [folder / WEIGHTS]:
        yield folder
        return
    with TemporaryDirectory() as made:
        try:
            _join(files, Path(made) / WEIGHTS)
        except OSError as error:
            size = sum(file.stat().st_size for file in files) / 1e9
            raise PolicyNotFound(
                f"the {len(files)} files of weights of {folder} cannot be put together in {gettempdir()} "
                f"({error.strerror}); {size:.1f} GB are needed there: let TMPDIR be another place"
            ) from error
        yield Path(made)


def _check_places(index: Path, found: dict[str, tuple[str, ...]]) -> None:
    """Raise `PolicyNotFound` unless every file holds what the index says, and nothing else."""
    places: dict[str, str] = read_manifest(index)["weight_map"]
    for file, names in found.items():
        said = {name for name, place in places.items() if place == file}
        if lacking := sorted(said - set(names)):
            raise PolicyNotFound(f"{index} says that {file} holds {lacking[0]!r}, which it does not")
        if more := sorted(set(names) - said):
            where = f"also in {places[more[0]]}" if more[0] in places else "which is not in the index"
            raise PolicyNotFound(
                f"{index.parent / file} holds {more[0]!r}, {where}; the files are of two checkpoints: copy "
                "them again"
            )


def _names(file: Path) -> tuple[str, ...]:
    try:
        with safe_open(file, "pt") as tensors:
            return tuple(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise PolicyNotFound(
            f"{file} is truncated or not safetensors ({in_one_line(error)}); copy it again"
        ) from error


def _join(files: Sequence[Path], target: Path) -> None:
    """Write one safetensors file of several, whose names differ: headers joined, contents one by one."""
    header: dict[str, Any] = {}
    told: dict[str, str] = {}
    begin = 0
    for file in files:
        described, length = _header(file)
        told |= described.pop("__metadata__", {})
        for name, tensor in described.items():
            offsets = [begin + offset for offset in tensor["data_offsets"]]
            header[name] = tensor | {"data_offsets": offsets}
        begin += file.stat().st_size - length
    text = json.dumps(header | ({"__metadata__": told} if told else {})).encode()
    text += b" " * (-len(text) % _LENGTH)  # contents are aligned
    with target.open("wb") as out:
        out.write(len(text).to_bytes(_LENGTH, "little") + text)
        for file in files:
            with file.open("rb") as part:
                part.seek(_header(file)[1])
                shutil.copyfileobj(part, out, 2**24)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their contents begin."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH), "little")
        found: dict[str, Any] = json.loads(opened.read(length))
    return found, _LENGTH + length
