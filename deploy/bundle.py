"""The bundle: a folder that holds a policy as ONNX graphs, and all else it takes to run it without torch.

    manifest.json        what is below, and how it fits together
    graphs/*.onnx        encode, step, finish; or prompt and extend; plans share what is made of the same
    graphs/weights.bin   the tensors of all graphs, each kept once
    plans/*.json         the plans, for the record
    tokenizer.json       of a policy that reads an instruction

`manifest.json` has the fields of the `policy_package` format, version 1.0, that lerobot's and physicalai's
proposals share; everything else is in its section "vivace".
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vivace.deploy.normalization import Normalization
from vivace.deploy.program import Origin, Program, ScheduledStep
from vivace.deploy.token_decoding import TokenProgram
from vivace.policies.backports import Self, sha256
from vivace.policies.errors import BadBundle
from vivace.policies.step_table import StepTable
from vivace.policies.types import ActionKind, ActionRange, BlockInfo, PolicySpec

FORMAT, VERSION = "policy_package", "1.0"
MANIFEST = "manifest.json"
PLANS = "plans"
"""Folder of the plans as they were calibrated."""
PLAN = "#"
"""Between a bundle's folder and the name of one of its plans."""
LAYOUT = 2
"""Version of the section "vivace"."""
_SAME_TIMESTEP = 1e-6
"""Policies take float32."""


@dataclass(frozen=True)
class Graph:
    """One ONNX graph."""

    file: str
    """Path inside the folder."""
    inputs: Mapping[str, tuple[int, ...]]
    """Name -> shape; -1: any."""
    outputs: Mapping[str, tuple[int, ...]]
    origin: Origin
    error: float
    """Largest difference of its outputs from torch's, in units of their size, when it was exported."""


@dataclass(frozen=True)
class Bundle:
    """What manifest.json says."""

    folder: Path
    name: str
    spec: PolicySpec
    graphs: tuple[Graph, ...]
    plans: Mapping[str, Program]
    """Name -> how chunks are made under this plan; the usual one first."""
    observations: Mapping[str, Normalization]
    actions: Normalization
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Instruction -> token ids, without padding; empty of a policy that reads none."""
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """How others are tokenised: "tokenizer" (file), "template", "bos", "suffix"; always "pad", "length"."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File -> sha256."""
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

    def record(self, plan: str) -> Path:
        """File of a plan as it was calibrated, for the record; its tensors are beside it, if it has any."""
        return self.folder / PLANS / f"{plan}.json"

    @property
    def reference(self) -> str:
        """What `load` finds it by again: the folder, and behind "#" the plan."""
        return f"{self.folder}{PLAN}{self.plan}" if self.plan else str(self.folder)

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

    def check_plans(self) -> None:
        """Raise `BadBundle` unless every plan has something to do, by graphs that are there."""
        if not self.plans:
            raise BadBundle(f"{self.folder} has no plan; export it again")
        for name, program in self.plans.items():
            wrong = [index for index in program.graphs if not 0 <= index < len(self.graphs)]
            if wrong or bool(program.steps) == (program.tokens is not None):
                raise BadBundle(
                    f"{self.folder}: plan {name!r} has {len(program.steps)} steps and calls graphs "
                    f"{list(program.graphs)} of {len(self.graphs)}; it needs steps, or tokens to write, by "
                    "graphs that are there; export it again"
                )
            for number, step in enumerate(program.steps):
                rows = self.graphs[step.graph].origin.timesteps or (step.table.t,)
                if not 0 <= step.at < len(rows) or abs(rows[step.at] - step.table.t) > _SAME_TIMESTEP:
                    raise BadBundle(
                        f"{self.folder}: step {number} of plan {name!r} looks up row {step.at} of "
                        f"{len(rows)} for timestep {step.table.t}; export it again"
                    )

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
                "plans": {name: asdict(program) for name, program in self.plans.items()},
                "observations": {key: value.to_json() for key, value in self.observations.items()},
                "actions": self.actions.to_json(),
                "prompts": {text: list(ids) for text, ids in self.prompts.items()},
                "prompt": dict(self.prompt),
                "files": dict(self.files),
            },
        }

    @property
    def megabytes(self) -> float:
        """Size of the folder [MB]."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return round(size / 1e6, 2)

    @classmethod
    def load(cls, reference: str | Path) -> Self:
        """Read and check a bundle's manifest and files.

        Args:
            reference: its folder; "folder#plan" means one of its plans, else its first.

        Raises:
            BadBundle: something is missing, truncated, of a newer version, or outside the folder; or it has
                no such plan.
        """
        place, _, plan = str(reference).partition(PLAN)
        folder = Path(place)
        file = folder / MANIFEST
        if not file.is_file():
            raise BadBundle(f"no {MANIFEST} in {folder}; make a bundle: vivace export --policy.path=…")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadBundle(f"{file} is not JSON ({error}); copy or export it again") from error
        bundle = replace(cls._from_json(folder, data), plan=plan)
        if plan and plan not in bundle.plans:
            raise BadBundle(f"{folder} has no plan {plan!r}; its plans: {', '.join(bundle.plans)}")
        for graph in bundle.graphs:
            bundle.path(graph.file)
        bundle.check_files()
        bundle.check_plans()
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
            if ours["layout"] != LAYOUT:
                advice = "update vivace on this machine" if ours["layout"] > LAYOUT else "export it again"
                raise BadBundle(
                    f"{folder / MANIFEST} has layout {ours['layout']}, this vivace reads {LAYOUT}; {advice}"
                )
            return cls(
                folder=folder,
                name=data["policy"]["name"],
                spec=_spec(ours["spec"]),
                graphs=tuple(_graph(entry) for entry in ours["graphs"]),
                plans={name: _program(entry) for name, entry in ours["plans"].items()},
                observations={k: Normalization.from_json(v) for k, v in ours["observations"].items()},
                actions=Normalization.from_json(ours["actions"]),
                prompts={text: tuple(ids) for text, ids in ours["prompts"].items()},
                prompt=ours["prompt"],
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
            "action_range": _action_range(data.get("action_range")),
        }
    )


def _action_range(data: Mapping[str, Any] | None) -> ActionRange | None:
    if data is None:
        return None
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return ActionRange(**values)


def _graph(data: Mapping[str, Any]) -> Graph:
    return Graph(
        data["file"],
        {name: tuple(shape) for name, shape in data["inputs"].items()},
        {name: tuple(shape) for name, shape in data["outputs"].items()},
        Origin(**{**data["origin"], "timesteps": tuple(data["origin"]["timesteps"])}),
        data["error"],
    )


def _program(data: Mapping[str, Any]) -> Program:
    return Program(
        encode=data["encode"],
        steps=tuple(
            ScheduledStep(
                step["graph"],
                _table(step["table"]),
                step["at"],
                {block: tuple(weights) for block, weights in step["weights"].items()},
            )
            for step in data["steps"]
        ),
        finish=data["finish"],
        tokens=None if data["tokens"] is None else TokenProgram(**data["tokens"]),
        receipt=data["receipt"],
    )


def _table(data: Mapping[str, Any]) -> StepTable:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return StepTable(**values)
