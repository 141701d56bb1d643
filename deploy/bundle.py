"""The bundle: a folder that holds a policy as ONNX graphs, and all else it takes to run it without torch.

    manifest.json        what is below, and how it fits together
    graphs/*.onnx        encode, one per distinct step program, finish; or encode and extend
    graphs/weights.bin   the tensors of all graphs, each kept once
    acceleration.json    the plan, for the record
    tokenizer.json       of a policy that reads an instruction

`manifest.json` has the fields of the `policy_package` format, version 1.0, that lerobot's and physicalai's
proposals share; everything else is in its section "vivace".
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vivace.deploy.normalization import Normalization
from vivace.deploy.token_decoding import TokenProgram
from vivace.policies.backports import Self, sha256
from vivace.policies.errors import BadBundle
from vivace.policies.step_table import StepTable
from vivace.policies.types import ActionKind, BlockInfo, PolicySpec

FORMAT, VERSION = "policy_package", "1.0"
MANIFEST = "manifest.json"
LAYOUT = 1
"""Version of the section "vivace"."""


@dataclass(frozen=True)
class Graph:
    """One ONNX graph."""

    file: str
    """Path inside the folder."""
    inputs: Mapping[str, tuple[int, ...]]
    """Name -> shape; -1: any."""
    outputs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StepProgram:
    """One step of the sampler: a call of a graph, and what is done with its answer."""

    graph: int
    """Index of the graph; it returns "out" and new cache entries."""
    table: StepTable
    carried: Mapping[str, str]
    """Cache entry of the next step -> entry of this one that it is, unchanged."""


@dataclass(frozen=True)
class Bundle:
    """What manifest.json says."""

    folder: Path
    name: str
    spec: PolicySpec
    graphs: tuple[Graph, ...]
    encode: int
    """Graph from normalised observations to the context."""
    steps: tuple[StepProgram, ...]
    finish: int | None
    """Graph from the last x to normalised actions; None: x is those."""
    observations: Mapping[str, Normalization]
    actions: Normalization
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Instruction -> token ids, without padding; empty of a policy that reads none."""
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """How others are tokenised: "tokenizer" (file), "template", "bos", "suffix"; always "pad", "length"."""
    receipt: Mapping[str, Any] = field(default_factory=dict)
    """Parity with torch, fingerprint, plan: for the record."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File -> sha256."""
    tokens: TokenProgram | None = None
    """How chunks are written, by a policy that writes tokens; it has no steps."""

    @property
    def usual_task(self) -> str:
        """First instruction it was exported with; "" of a policy that reads none."""
        return next(iter(self.prompts), "")

    def path(self, name: str) -> Path:
        """Return the path of one of its files.

        Raises:
            BadBundle: it would be outside the folder, or is not there.
        """
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise BadBundle(
                f"{self.folder}: the manifest names {name!r}, outside the folder; export it again"
            )
        if not path.is_file():
            raise BadBundle(f"{self.folder} has no {name}; copy the whole folder, or export it again")
        return path

    def check_files(self) -> None:
        """Raise `BadBundle` if a file is missing or is not the one that was exported."""
        for name, digest in self.files.items():
            if file_hash(self.path(name)) != digest:
                raise BadBundle(f"{self.path(name)} was changed or is truncated; copy or export it again")

    def to_json(self) -> dict[str, Any]:
        """Plain data of manifest.json."""
        spec = asdict(self.spec)
        cameras = [
            {"name": key.removeprefix("observation.images."), "shape": list(shape)}
            for key, shape in self.spec.observation_shapes.items()
            if key.startswith("observation.image")
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "policy": {"name": self.name, "source": {"type": self.spec.type}},
            "model": {
                "n_obs_steps": self.spec.n_obs_steps,
                "artifacts": {"onnx": [graph.file for graph in self.graphs]},
                "runner": {
                    "type": "action_chunking",
                    "chunk_size": self.spec.horizon,
                    "n_action_steps": self.spec.n_action_steps,
                },
                "preprocessors": [],
                "postprocessors": [],
            },
            "hardware": {"robots": [], "cameras": cameras},
            "vivace": {
                "layout": LAYOUT,
                "spec": spec,
                "graphs": [asdict(graph) for graph in self.graphs],
                "encode": self.encode,
                "steps": [asdict(step) for step in self.steps],
                "finish": self.finish,
                "tokens": None if self.tokens is None else asdict(self.tokens),
                "observations": {key: value.to_json() for key, value in self.observations.items()},
                "actions": self.actions.to_json(),
                "prompts": {text: list(ids) for text, ids in self.prompts.items()},
                "prompt": dict(self.prompt),
                "receipt": dict(self.receipt),
                "files": dict(self.files),
            },
        }

    @property
    def megabytes(self) -> float:
        """Size of the folder [MB]."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return round(size / 1e6, 2)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read and check a bundle's manifest and files.

        Raises:
            BadBundle: something is missing, truncated, of a newer version, or outside the folder.
        """
        folder = Path(folder)
        file = folder / MANIFEST
        if not file.is_file():
            raise BadBundle(f"no {MANIFEST} in {folder}; make a bundle: vivace export --policy.path=…")
        try:
            data = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadBundle(f"{file} is not JSON ({error}); copy or export it again") from error
        bundle = cls._from_json(folder, data)
        for graph in bundle.graphs:
            bundle.path(graph.file)
        bundle.check_files()
        return bundle

    @classmethod
    def _from_json(cls, folder: Path, data: Any) -> Self:
        try:
            if data["format"] != FORMAT or str(data["version"]).split(".")[0] != VERSION.split(".")[0]:
                raise BadBundle(
                    f"{folder / MANIFEST} is {data['format']!r} version {data['version']}; this vivace reads "
                    f"{FORMAT!r} version {VERSION}"
                )
            if "vivace" not in data:
                raise BadBundle(
                    f"{folder / MANIFEST} is a policy package of another tool: it lacks our section; run "
                    "vivace export on the checkpoint"
                )
            ours = data["vivace"]
            if ours["layout"] > LAYOUT:
                raise BadBundle(
                    f"{folder / MANIFEST} has layout {ours['layout']}, this vivace reads up to {LAYOUT}; "
                    "update vivace on this machine"
                )
            return cls(
                folder=folder,
                name=data["policy"]["name"],
                spec=_spec(ours["spec"]),
                graphs=tuple(_graph(entry) for entry in ours["graphs"]),
                encode=ours["encode"],
                steps=tuple(
                    StepProgram(entry["graph"], _table(entry["table"]), entry["carried"])
                    for entry in ours["steps"]
                ),
                finish=ours["finish"],
                tokens=None if ours["tokens"] is None else TokenProgram(**ours["tokens"]),
                observations={k: Normalization.from_json(v) for k, v in ours["observations"].items()},
                actions=Normalization.from_json(ours["actions"]),
                prompts={text: tuple(ids) for text, ids in ours["prompts"].items()},
                prompt=ours["prompt"],
                receipt=ours["receipt"],
                files=ours["files"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadBundle(
                f"{folder / MANIFEST} is incomplete ({type(error).__name__}: {error}); export it again"
            ) from error


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return sha256(file)


def _spec(data: Mapping[str, Any]) -> PolicySpec:
    return PolicySpec(
        **{
            **data,
            "observation_shapes": {key: tuple(s) for key, s in data["observation_shapes"].items()},
            "action_kinds": tuple(ActionKind(kind) for kind in data["action_kinds"]),
            "blocks": tuple(BlockInfo(**block) for block in data["blocks"]),
        }
    )


def _graph(data: Mapping[str, Any]) -> Graph:
    return Graph(
        data["file"],
        {name: tuple(shape) for name, shape in data["inputs"].items()},
        {name: tuple(shape) for name, shape in data["outputs"].items()},
    )


def _table(data: Mapping[str, Any]) -> StepTable:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return StepTable(**values)
