"""Damaged bundles: each is refused by one `VivaceError`, or gives the actions of the whole one.

With digests made anew a weight may be a little off and not be found; of these a few in a hundred may pass.

Damage is done to manifest, golden chunk, graphs and weights, as it is and with every digest made anew, as a
tool with a fault would. `--bundle-mutations=10000` does more of it.
"""

import copy
import hashlib
import json
import math
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundles

from vivace.deploy.bundle.bundle import DIGEST, MANIFEST, Bundle
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.policies.errors import VivaceError
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.spec import DELAY, PREVIOUS

KINDS = ("denoiser", "writer", "renaming")
FILE_NAME = "golden/plan.safetensors"
STRANGE = (
    None, True, False, -1, 0, 1, 2, 3, 1.5, -0.5, 1e300, 1e-300, math.nan, math.inf, 2**31, 2**63, 2**64,
    10**400, "", "graphs/encode.onnx", "../../etc/passwd", "/etc/passwd", "a\0b", "{0}", "x" * 5000, [], {},
    [0], [[0, 1]], [0.5], {"a": 1}, [1] * 3000,
)  # fmt: skip
WRONG = 0.01
"""Difference of actions that counts, in units of the policy: ten times what golden chunks may differ by."""
PATIENCE_S = 20
"""Of this process's own time, for one bundle of a few kilobytes."""


@dataclass(frozen=True)
class Subject:
    """A whole bundle and what it does."""

    folder: Path
    scratch: Path
    actions: list[np.ndarray]


@pytest.fixture(scope="module", params=KINDS)
def subject(request, tmp_path_factory) -> Subject:
    base = tmp_path_factory.mktemp(request.param)
    folder = getattr(small_bundles, request.param)(base / "bundle")
    bundle = Bundle.load(folder)
    return Subject(folder, base / "scratch", acted(OrtPolicy(bundle, threads=1)))


@pytest.fixture
def n(request) -> int:
    return -(-request.config.getoption("--bundle-mutations") // len(KINDS))


def acted(policy: OrtPolicy) -> list[np.ndarray]:
    """Actions in units of the policy: free, continued and cut short, of others than the golden one."""
    spec, unit = policy.spec, policy.bundle.actions.span / policy.bundle.actions.gain
    policy.task, found = policy.bundle.usual_task, []
    for seed in (7, 8):
        seen, keys = small_bundles.observation(policy.bundle, seed), [(seed, 1)]
        wish = np.full((1, 3, spec.action_dim), 0.3, np.float32)
        found += [policy.predict(seen, keys)[0], policy.predict(seen, keys, deadline_s=0.0)[0]]
        if policy.bundle.program.tokens is None:
            policy.chunking = RealTimeChunking()
            found.append(policy.predict(seen | {PREVIOUS: wish, DELAY: np.array([1])}, keys)[0])
            policy.chunking = None
    return [one / unit for one in found]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside plain data."""
    names = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield (*path, name)
        yield from places(value[name], (*path, name))


def change(data: dict[str, Any], draw: random.Random) -> None:
    """Change something in place: another value, another type, another size, gone, there twice, swapped."""
    *way, name = draw.choice(list(places(data)))
    parent: Any = data
    for step in way:
        parent = parent[step]
    value, how = parent[name], draw.randrange(8)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**60
    if is_number and how < 3:
        parent[name] = draw.choice((value + 1, value - 1, -value, value * 2, value / 2, float(value)))
    elif isinstance(value, list) and value and how < 4:
        resize(value, draw)
    elif how == 5 and isinstance(parent, dict):
        parent[draw.choice((f"{name}s", "extra", name.upper()))] = parent.pop(name)
    elif how == 6:
        del parent[name]
    elif how == 7:
        other = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[name], parent[other] = parent[other], parent[name]
    else:
        parent[name] = copy.deepcopy(draw.choice(STRANGE))


def resize(items: list[Any], draw: random.Random) -> None:
    """Truncate, extend, reverse, repeat or mix a list."""
    some = copy.deepcopy(draw.choice(items))
    how = draw.randrange(5)
    if how == 0:
        del items[draw.randrange(len(items)) :]
    elif how == 1:
        items.append(some)
    elif how == 2:
        items.reverse()
    elif how == 3:
        items.insert(0, copy.deepcopy(draw.choice(STRANGE)))
    else:
        draw.shuffle(items)


def scratched(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut out, cut off, repeat or overwrite bytes."""
    at, how = draw.randrange(len(data)), draw.randrange(6)
    end = min(len(data), at + draw.randrange(1, 9))
    changes = (
        lambda: data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + data[end:],
        lambda: data[:at],
        lambda: data[:end] + data[at:],
        lambda: data[:at] + draw.randbytes(end - at) + data[end:],
        lambda: data[:at] + draw.randbytes(end - at) + data[at:],
    )
    return changes[how]()


def remade(folder: Path) -> None:
    """Make digests anew, as far as the manifest can be read."""
    file = folder / MANIFEST
    try:
        data = json.loads(file.read_text())
        for name in data["vivace"]["files"]:
            data["vivace"]["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        file.write_text(json.dumps(data))
    except (ValueError, KeyError, TypeError, OSError, AttributeError):
        pass
    (folder / DIGEST).write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {MANIFEST}\n")


def damage_manifest(folder: Path, draw: random.Random) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        change(data, draw)
    (folder / MANIFEST).write_text(json.dumps(data))


def damage_manifest_bytes(folder: Path, draw: random.Random) -> None:
    _scratch(folder / MANIFEST, draw)


def damage_golden(folder: Path, draw: random.Random) -> None:
    _scratch(folder / FILE_NAME, draw)


def damage_golden_header(folder: Path, draw: random.Random) -> None:
    data = (folder / FILE_NAME).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header, draw)
    text = json.dumps(header).encode()
    (folder / FILE_NAME).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def damage_graph(folder: Path, draw: random.Random) -> None:
    _scratch(draw.choice(sorted((folder / "graphs").glob("*.onnx"))), draw)


def damage_weights(folder: Path, draw: random.Random) -> None:
    _scratch(folder / "graphs" / "weights.bin", draw)


def _scratch(file: Path, draw: random.Random) -> None:
    file.write_bytes(scratched(file.read_bytes(), draw))


DAMAGES = {
    damage_manifest: 0.6,
    damage_manifest_bytes: 0.1,
    damage_golden: 0.05,
    damage_golden_header: 0.05,
    damage_graph: 0.15,
    damage_weights: 0.05,
}
"""What is done -> its share."""
UNREAD = (damage_weights, damage_graph)
"""Where one golden chunk cannot show everything: a weight that it hardly uses, a row of a table of tokens
that it does not read. Digests guard these."""


@contextmanager
def patience() -> Iterator[None]:
    """Raise when this process's own time is over: on a busy machine, too, a hang is a hang."""

    def give_up(*_: object) -> None:
        raise TimeoutError("a damaged bundle was still being loaded")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(subject: Subject, damage: Any, draw: random.Random, is_remade: bool) -> str:
    """Damage a copy, load it, run it; returns refused, same, or what was wrong."""
    shutil.rmtree(subject.scratch, ignore_errors=True)
    shutil.copytree(subject.folder, subject.scratch)
    damage(subject.scratch, draw)
    if is_remade:
        remade(subject.scratch)
    try:
        with patience():
            found = acted(OrtPolicy(Bundle.load(subject.scratch), threads=1))
    except VivaceError as error:
        text = str(error)
        assert len(text.splitlines()) == 1, text
        assert len(text) < 1500, text
        return "refused"
    shapes = [one.shape for one in found]
    if shapes != [one.shape for one in subject.actions]:
        return f"wrong: chunks of {shapes}"
    worst = max(float(np.abs(one - other).max()) for one, other in zip(found, subject.actions, strict=True))
    return "same" if worst <= WRONG else f"wrong: off by {worst:.2g}"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_refused_or_does_nothing(subject, damage, n):
    draw = random.Random(damage.__name__)
    counts: Counter[str] = Counter()
    for call in range(max(10, int(n * DAMAGES[damage]))):
        found = outcome(subject, damage, draw, is_remade=True)
        is_wrong = found.startswith("wrong")
        assert not is_wrong or damage in UNREAD, f"{found}, call {call}"
        counts["wrong" if is_wrong else found] += 1
    print(subject.folder.parent.name, damage.__name__, dict(counts))
    assert counts["refused"] > 0
    assert counts["wrong"] <= counts.total() / 10


def test_nothing_gets_past_the_digests(subject, n):
    draw = random.Random("as it is")
    for _ in range(max(20, n // 4)):
        damage = draw.choice(list(DAMAGES))
        shutil.rmtree(subject.scratch, ignore_errors=True)
        shutil.copytree(subject.folder, subject.scratch)
        damage(subject.scratch, draw)
        files = [path.relative_to(subject.folder) for path in subject.folder.rglob("*") if path.is_file()]
        if all((subject.folder / f).read_bytes() == (subject.scratch / f).read_bytes() for f in files):
            continue
        with pytest.raises(VivaceError, match=r"was changed|is truncated"), patience():
            Bundle.load(subject.scratch)


def test_every_field_is_read_as_what_it_is(subject, n):
    """Every value of the manifest in turn replaced by what is strange; of many mutations by all of it."""
    plain = json.loads((subject.folder / MANIFEST).read_text())
    seen, counts = set(), Counter()
    draw = random.Random("fields")
    for path in places(plain):
        form = tuple("#" if isinstance(name, int) else name for name in path)
        if form in seen:
            continue
        seen.add(form)
        for strange in draw.sample(STRANGE, min(len(STRANGE), max(2, n // 50))):
            data = copy.deepcopy(plain)
            parent: Any = data
            for step in path[:-1]:
                parent = parent[step]
            parent[path[-1]] = copy.deepcopy(strange)

            def damage(folder: Path, _: random.Random, data: Any = data) -> None:
                (folder / MANIFEST).write_text(json.dumps(data))

            found = outcome(subject, damage, draw, is_remade=True)
            assert not found.startswith("wrong"), f"{found} with {'.'.join(map(str, path))} = {strange!r}"
            counts[found] += 1
    assert counts["refused"] > counts["same"] > 0
