"""Shares of a command's episodes, each in a file of its own, and how they are joined."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.eval.identity import source_digest
from vivace.eval.machine import versions
from vivace.eval.output import read_json, write_json
from vivace.eval.scale.job import Job
from vivace.eval.scale.options import Shard
from vivace.eval.simulation.episode import EpisodeResult
from vivace.policies.errors import BadSetting

FILE_NAME = "shard.json"
_WHAT = "share of a command's episodes"
_FIELDS = {"verb", "share", "run", "jobs", "results", "episodes"}


def share_folder(folder: Path, share: Shard) -> Path:
    """Return the folder of a share, made if need be, inside that of the results."""
    found = folder / share.folder
    found.mkdir(exist_ok=True)
    return found


def write_share(
    folder: Path,
    share: Shard,
    identity: Mapping[str, Any],
    jobs: Sequence[Job],
    results: Mapping[str, Any],
    episodes: Mapping[str, Sequence[EpisodeResult]],
) -> dict[str, Any]:
    """Write what a share found; of number 0 nothing, for it has run no episode.

    Args:
        folder: of the share.
        share: which one.
        identity: what its command is about, as of `output.claim`.
        jobs: all jobs of the command.
        results: results.json without what follows from episodes.
        episodes: name of a job -> the share's own.

    Returns:
        What the last line says.
    """
    n = sum(map(len, episodes.values()))
    if share.number:
        threads = results["threads"]["episodes"]
        run = {**identity, "code": source_digest(), "versions": versions(), "threads": threads}
        data = {
            "verb": results["kind"],
            "share": list(share),
            "run": run,
            "jobs": {job.name: [job.described(), job.settings.seed, job.settings.n_episodes] for job in jobs},
            "results": results,
            "episodes": {name: [e.to_json() for e in found] for name, found in episodes.items()},
        }
        write_json(folder / FILE_NAME, data)
    return {"share": f"{share}", "episodes": n, "folder": str(folder)}


@dataclass(frozen=True)
class Joined:
    """All shares of a command."""

    results: dict[str, Any]
    """results.json without what follows from episodes, as the first share has it; "wall" is the sum."""
    episodes: dict[str, list[EpisodeResult]]
    """Name of a job -> all its episodes, in the order of their seeds."""
    first: Path
    """Folder of the first share, which made the films."""


def join(places: Sequence[Path]) -> Joined:
    """Read shares and put them together.

    Args:
        places: folders of shares, or folders that hold such.

    Raises:
        BadSetting: one is missing or there twice, they are of different commands, or one is damaged.
    """
    shares = [(file.parent, _read(file)) for file in _files(places)]
    (_, one), *others = shares
    for folder, other in others:
        _check_together(shares[0][0], one, folder, other)
    of = one["share"][1]
    numbers = Counter(found["share"][0] for _, found in shares)
    if twice := [number for number, times in numbers.items() if times > 1]:
        both = [str(folder) for folder, found in shares if found["share"][0] == twice[0]]
        raise BadSetting(f"share {twice[0]}/{of} is there twice: {' and '.join(both[:2])}; leave one out")
    if missing := sorted(set(range(1, of + 1)) - set(numbers)):
        told = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise BadSetting(
            f"of {of} shares {len(missing)} are missing: {told}; run them with --scale.shard=i/{of}"
        )
    shares.sort(key=lambda found: found[1]["share"])
    first, found = shares[0]
    walls = [share["results"]["wall"] for _, share in shares]
    wall = {name: round(sum(one[name] for one in walls), 2) for name in walls[0]}
    return Joined({**found["results"], "wall": wall, "shares": of}, _episodes(shares), first)


def _files(places: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        inside = sorted(place.glob(f"shard-*-of-*/{FILE_NAME}"))
        found += [place / FILE_NAME] if (place / FILE_NAME).is_file() else inside
        if not inside and not (place / FILE_NAME).is_file():
            raise BadSetting(f"{place} holds no finished share; needed is what --scale.shard=i/n wrote")
    return found


def _read(file: Path) -> dict[str, Any]:
    found = read_json(file, _WHAT)
    if not isinstance(found, dict) or not found.keys() >= _FIELDS:
        raise BadSetting(f"{file} is no {_WHAT}, or another version's; run that share again")
    return found


def _check_together(folder: Path, one: Mapping[str, Any], place: Path, other: Mapping[str, Any]) -> None:
    """Raise `BadSetting` unless two shares are of one run."""
    differing = [key for key in one["run"] if other["run"].get(key) != one["run"][key]]
    differing += ["verb"] * (one["verb"] != other["verb"])
    differing += ["number of shares"] * (one["share"][1] != other["share"][1])
    if one["jobs"] != other["jobs"] and not differing:
        names = {name for name in {**one["jobs"], **other["jobs"]}}
        unlike = sorted(name for name in names if one["jobs"].get(name) != other["jobs"].get(name))
        differing.append(f"what was run under the name {unlike[0]}")
    if differing:
        raise BadSetting(
            f"{folder} and {place} are shares of different runs: they differ in {', '.join(differing)}"
        )


def _episodes(shares: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, list[EpisodeResult]]:
    """All episodes of all jobs; raises `BadSetting` if some are not there."""
    joined = {}
    for name, (_, seed, n) in shares[0][1]["jobs"].items():
        found = {
            data["seed"]: EpisodeResult.from_json(data)
            for _, share in shares
            for data in share["episodes"].get(name, [])
        }
        if lacking := [other for other in range(seed, seed + n) if other not in found]:
            raise BadSetting(f"no share holds episode {lacking[0]} of {name}; run its share again")
        joined[name] = [found[other] for other in range(seed, seed + n)]
    return joined
