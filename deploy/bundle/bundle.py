"""The bundle: a folder that holds a policy as ONNX graphs, and all else it takes to run it without torch.

    manifest.json        what is below, and how it fits together (`bundle_form`)
    manifest.sha256      digest of manifest.json, as sha256sum writes it
    manifest.sig         signature of manifest.json, if it was signed (`signature`)
    graphs/*.onnx        encode, step, finish; or prompt and extend; or one of the whole; plans share what is
                         made of the same
    graphs/weights.bin   the tensors of all graphs, each kept once
    golden/*             of every plan an observation and the chunk that it made of it (`golden`)
    plans/*.json         the plans, for the record
    tokenizer.json       of a policy that reads an instruction

`manifest.json` has the fields of the `policy_package` format, version 1.0, that lerobot's and physicalai's
proposals share; everything else is in its section "vivace".

Nothing is taken on trust. The manifest holds the digest of every file that is used, and its own digest is in
a file beside it: over its bytes as they are, so that it is known to be whole before anything reads it, and no
second writer has to agree with us on how numbers are spelled; `sha256sum -c manifest.sha256` checks it too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vivace.deploy.bundle.checks import check_contents
from vivace.deploy.bundle.form import FORMAT, LAYOUT, VERSION, Contents, manifest
from vivace.deploy.bundle.golden import Golden
from vivace.deploy.bundle.onnx_file import external_data, inside
from vivace.deploy.bundle.program import Program
from vivace.deploy.bundle.signature import check_signature
from vivace.policies.backports import Self, sha256
from vivace.policies.errors import BadBundle, BadSetting
from vivace.policies.plain_data import build, parse_json, shown
from vivace.policies.spec import Text

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
PLANS = "plans"
"""Folder of the plans as they were calibrated."""
PLAN = "#"
"""Between a bundle's folder and the name of one of its plans."""
MAX_BYTES = 16 * 2**20
"""Of a manifest; a policy of 63 step graphs has 2 MB."""
_NOT_HASHED = (MANIFEST, DIGEST, "manifest.sig")

Told = Callable[[str, str], None]
"""Is told what was checked, and what was found."""


@dataclass(frozen=True, kw_only=True)
class Bundle(Contents):
    """What a bundle's folder holds."""

    folder: Path
    name: str
    goldens: Mapping[str, Golden] = field(default_factory=dict)
    """Plan -> its golden chunk; one of every plan, but while a bundle is made."""
    plan: str = ""
    """The plan that is meant; the usual one when ""."""

    @property
    def plan_name(self) -> str:
        """Name of the plan that is meant."""
        return self.plan or next(iter(self.plans))

    @property
    def program(self) -> Program:
        """How chunks are made under the plan that is meant."""
        return self.plans[self.plan_name]

    @property
    def receipt(self) -> Mapping[str, Any]:
        """Parity with torch, fingerprint, techniques of the plan that is meant."""
        return self.program.receipt

    @property
    def recorded(self) -> Golden | None:
        """The golden chunk of the plan that is meant; None only while a bundle is made."""
        return self.goldens.get(self.plan_name)

    @property
    def reference(self) -> str:
        """What `load` finds it by again: the folder, and behind "#" the plan."""
        return f"{self.folder}{PLAN}{self.plan}" if self.plan else str(self.folder)

    def record(self, plan: str) -> Path:
        """File of a plan as it was calibrated, for the record; its tensors are beside it, if it has any."""
        return self.folder / PLANS / f"{plan}.json"

    @property
    def usual_task(self) -> str:
        """First instruction it was exported with; "" of a policy that reads none."""
        return next(iter(self.prompts), "")

    @property
    def example(self) -> Mapping[str, np.ndarray] | None:
        """An observation that the policy was exported with, key -> (To, ...); None while it is made."""
        return None if self.recorded is None else self.recorded.observations

    @property
    def megabytes(self) -> float:
        """Size of the folder [MB]."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return round(size / 1e6, 2)

    def path(self, name: str) -> Path:
        """Return the path of one of its files.

        Raises:
            BadBundle: it would be outside the folder, or is not there.
        """
        path = (self.folder / inside(name)).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise BadBundle(
                f"{self.folder}: {name} is a link to a place outside the folder; copy the file into it"
            )
        if not path.is_file():
            raise BadBundle(f"{self.folder} has no {name}; copy the whole folder, or export it again")
        return path

    def write(self) -> Self:
        """Write manifest and digest; returns the bundle with the digests of all files.

        Everything else must be in the folder already, and nothing that does not belong to it.
        """
        names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        files = {name: file_hash(self.folder / name) for name in names if name not in _NOT_HASHED}
        whole = replace(self, files=files)
        data = (json.dumps(manifest(whole.name, whole), indent=1) + "\n").encode()
        (self.folder / MANIFEST).write_bytes(data)
        (self.folder / DIGEST).write_text(f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n")
        return whole

    @classmethod
    def load(
        cls, reference: str | Path, public_key: str | Path = "", told: Told = lambda what, found: None
    ) -> Self:
        """Read a bundle and check that it is whole and fits together; ONNX Runtime opens nothing of it.

        Args:
            reference: the folder that `vivace export` wrote; "folder#plan" means one of its plans, else its
                first.
            public_key: PEM file; the bundle must be signed with the key that belongs to it. Empty: it need
                not be signed.
            told: is told every check that was passed.

        Raises:
            BadBundle: something is missing, changed, damaged, of another version, outside the folder, or does
                not fit; or it has no such plan.
            BadSetting: the public key cannot be read.
        """
        place, _, plan = str(reference).partition(PLAN)
        folder = Path(place)
        data = _manifest_bytes(folder)
        bundle = cls._from_json(folder, _checked(folder, data, public_key, told))
        try:
            check_contents(bundle)
        except BadBundle as error:
            raise BadBundle(f"{folder / MANIFEST}: {error}") from error
        if plan and plan not in bundle.plans:
            raise BadBundle(f"{folder} has no plan {shown(plan)}; its plans: {', '.join(bundle.plans)}")
        told("contents", f"{bundle.spec.type}, {len(bundle.graphs)} graphs, plans {', '.join(bundle.plans)}")
        return replace(bundle, plan=plan, goldens=bundle._read_files(told))

    @classmethod
    def _from_json(cls, folder: Path, data: Any) -> Self:
        section = {key: value for key, value in data["vivace"].items() if key != "layout"}
        try:
            contents = build(Contents, "section 'vivace'", section)
            name = build(_Head, "section 'policy'", data.get("policy")).name
        except BadSetting as error:
            raise BadBundle(f"{folder / MANIFEST} is malformed: {error}; export it again") from error
        different = _difference(data, json.loads(json.dumps(manifest(name, contents))))
        if different:
            raise BadBundle(f"{folder / MANIFEST} contradicts itself: {different}; export it again")
        return cls(folder=folder, name=name, **vars(contents))

    def _read_files(self, told: Told) -> dict[str, Golden]:
        """Check every file; returns the golden chunks."""
        used = {graph.file for graph in self.graphs}
        if self.prompt is not None and self.prompt.tokenizer:
            used.add(self.prompt.tokenizer)
        for name, program in self.plans.items():
            assert program.golden is not None, name  # as was checked
            used.add(program.golden.file)
        for name, digest in self.files.items():
            if file_hash(self.path(name)) != digest:
                raise BadBundle(f"{self.path(name)} was changed or is truncated; copy or export it again")
        used |= self._external_files()
        missing = sorted(used - set(self.files))
        if missing:
            raise BadBundle(
                f"{self.folder / MANIFEST} has no digest of {shown(missing[0])}, which is used; export it "
                "again"
            )
        told("files", f"{len(self.files)} as they were exported, {len(used)} used, none outside the folder")
        return {name: self._golden(program) for name, program in self.plans.items()}

    def _golden(self, program: Program) -> Golden:
        assert program.golden is not None
        file, vocabulary = program.golden.file, 0
        if program.tokens is not None:
            vocabulary = self.graphs[program.encode].outputs["logits"][-1]
        try:
            data = self.path(file).read_bytes()
            more = {"continues": program.continues and bool(program.steps), "carries": program.carries}
            return Golden.from_bytes(data, file, self.spec, vocabulary, **more)
        except BadSetting as error:
            raise BadBundle(f"{self.folder}: {error}; export it again") from error

    def _external_files(self) -> set[str]:
        """Files that hold tensors of the graphs; raises `BadBundle` where they lack them."""
        found: dict[str, int] = {}
        for graph in self.graphs:
            for part in external_data(self.path(graph.file).read_bytes(), graph.file):
                found[part.file] = max(found.get(part.file, 0), part.offset + part.length)
        for name, end in found.items():
            if self.path(name).stat().st_size < end:
                raise BadBundle(
                    f"{self.folder} has tensors at {end} of {name}, which is shorter; export it again"
                )
        return set(found)


@dataclass(frozen=True)
class _Head:
    """The section "policy" of a manifest."""

    name: Text
    source: Mapping[str, Any]


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return sha256(file)


def _manifest_bytes(folder: Path) -> bytes:
    file = folder / MANIFEST
    if not file.is_file():
        raise BadBundle(f"no {MANIFEST} in {folder}; make a bundle: vivace export --policy.path=…")
    if file.stat().st_size > MAX_BYTES:
        raise BadBundle(f"{file} has {file.stat().st_size} bytes; at most {MAX_BYTES} are read")
    return file.read_bytes()


def _checked(folder: Path, data: bytes, public_key: str | Path, told: Told) -> dict[str, Any]:
    """Return what the manifest says, if its digest, signature and versions are right."""
    file, digest = folder / MANIFEST, folder / DIGEST
    found = hashlib.sha256(data).hexdigest()
    has_digest = digest.is_file()
    if has_digest and digest.read_bytes()[:64] != found.encode():
        raise BadBundle(
            f"{file} was changed: its sha256 is {found[:12]}…, {DIGEST} says another; copy or export it again"
        )
    try:
        parsed: dict[str, Any] = parse_json(data, str(file))
    except BadSetting as error:
        raise BadBundle(f"{error}; copy or export it again") from error
    _check_versions(file, parsed)
    if not has_digest:
        raise BadBundle(f"{folder} has no {DIGEST}; copy the whole folder, or export it again")
    told("manifest", f"sha256 {found[:12]}…, layout {LAYOUT}")
    if public_key:
        check_signature(folder, data, public_key)
        told("signature", f"made with the key of {public_key}")
    return parsed


def _check_versions(file: Path, data: Any) -> None:
    if not isinstance(data, dict):
        raise BadBundle(f"{file} is {shown(data)}; needed is an object; export it again")
    kind, version = data.get("format"), str(data.get("version"))
    if kind != FORMAT or version.split(".")[0] != VERSION.split(".")[0]:
        raise BadBundle(
            f"{file} is {shown(kind)} version {shown(version)}; this vivace reads {FORMAT!r} version "
            f"{VERSION}"
        )
    ours = data.get("vivace")
    if not isinstance(ours, dict):
        raise BadBundle(
            f"{file} is a policy package of another tool: it lacks our section; run vivace export on the "
            "checkpoint"
        )
    layout = ours.get("layout")
    if layout != LAYOUT or isinstance(layout, bool):
        is_newer = isinstance(layout, int) and layout > LAYOUT
        what = (
            "update vivace on this machine"
            if is_newer
            else "it was written by an older vivace; export it again"
        )
        raise BadBundle(f"{file} has layout {shown(layout)}, this vivace reads {LAYOUT}; {what}")


def _difference(found: Any, wanted: Any, where: str = "it") -> str:
    """Where plain data differ first; "" if they do not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if key not in found or key not in wanted:
                return f"{where} {'lacks' if key in wanted else 'has'} {shown(key)}"
            told = _difference(found[key], wanted[key], f"{where}.{key}" if len(key) < 60 else where)
            if told:
                return told
        return ""
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return next(filter(None, (_difference(*both, where) for both in zip(found, wanted, strict=True))), "")
    is_same = found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
    return "" if is_same else f"{where} is {shown(found)}, the rest means {shown(wanted)}"
