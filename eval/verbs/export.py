"""`vivace export`: a bundle for the robot, parity proven on observations of a dataset, a world or shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.signature import private_key
from vivace.deploy.export.export import check_exportable, export
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.options import CommonOptions
from vivace.eval.subject import instructions, load, load_plan, session
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy


@dataclass(kw_only=True)
class ExportOptions:
    """What goes into a bundle."""

    plan: bool = True
    """The plan that --accel.path names, else the one beside the checkpoint, if there is one; false: none."""
    plans: list[str] = field(default_factory=list)
    """Several plans in the place of one, the usual one first: files or folders, "own" for the one beside the
    checkpoint, "plain" for none. A plan has the name of its folder, and is run as bundle#name."""
    into: str = ""
    """Bundle that the plans are added to; graphs that it has already are not exported again."""
    precision: str = "fp32"
    """fp32, proven equal to torch; fp16, int8 (matrix products, quantised as they come), or bf16 (by OpenVINO
    on a processor that has it): the error of the actions is reported."""
    provider: str = "cpu"
    """Provider of ONNX Runtime that chunks are proven on: cpu, cuda, tensorrt, openvino."""
    samples: int = 8
    """Observations of other episodes than the plan was calibrated on, to prove parity on."""
    instructions: list[str] = field(default_factory=list)
    """Texts a policy that reads one will be told; those of the recording or the tasks named when empty."""
    prompt_tokens: int = 0
    """Tokens of the longest prompt that the graphs read; 0: as many as the policy does. Padding costs as much
    as text, so fewer are faster, and as exact; instructions that need more are refused."""
    sign_key: str = ""
    """PEM file of an ed25519 private key to sign the bundle with (openssl genpkey -algorithm ed25519); robots
    check it with --public_key."""
    action_kinds: list[str] = field(default_factory=list)
    """What each dimension of the actions means, or all of them: absolute, delta, velocity; when empty as the
    checkpoint, the environment, or the names of a dataset's actions (.pos, .vel) say."""


@dataclass(kw_only=True)
class ExportCommand(CommonOptions):
    """Export a policy under its plan as ONNX graphs that run without torch; parity is proven first.

    Example: vivace export --policy.path=zoo/reach --env.task=reach-v3 --output_dir=outputs/bundles/reach
    From recorded data: vivace export --policy.path=CHECKPOINT --data.repo=DATASET --output_dir=bundle
    Another plan of the same policy: vivace export --policy.path=zoo/reach --env.task=reach-v3
    --accel.path=outputs/plans/faster --export.into=outputs/bundles/reach
    """

    BUILDS = True
    export: ExportOptions = field(default_factory=ExportOptions)


OWN, PLAIN = "own", "plain"
"""Names of the plan beside the checkpoint, and of none."""


def run(command: ExportCommand) -> tuple[dict[str, Any], bool]:
    """Export, prove, say what was written."""
    folder = _folder(command)
    if command.export.sign_key:
        private_key(command.export.sign_key)  # before a minute's work
    loaded = load(command, command.export.action_kinds)
    plans = _plans(command, loaded)
    check_exportable(loaded, plans, session(command, loaded).blank())  # before observations are gathered
    texts = command.export.instructions or instructions(command)
    data = observe(command, loaded, seed=JUDGEMENT_SEED, samples=command.export.samples)
    with console.status("exporting") as status:
        bundle = export(
            loaded,
            plans,
            data,
            folder,
            texts,
            lambda name: status.update(f"exporting {name}"),
            command.export.precision,
            into=bool(command.export.into),
            sign_key=command.export.sign_key,
            provider=command.export.provider,
            prompt_tokens=command.export.prompt_tokens,
        )
    console.print(f"parity proven on observations: {data.source}", highlight=False)
    return _summary(bundle, folder, list(plans)) | {"observations": data.source}, True


def _folder(command: ExportCommand) -> Path:
    """Folder of the bundle that is made, or added to."""
    if command.export.prompt_tokens < 0 or (command.export.prompt_tokens and command.export.into):
        raise BadSetting(
            f"export.prompt_tokens={command.export.prompt_tokens}; a number above 0 for a new bundle, or 0"
        )
    if command.export.into:
        if command.output_dir is not None:
            raise BadSetting("vivace export takes --output_dir for a new bundle or --export.into, not both")
        return Path(command.export.into)
    if command.output_dir is None:
        raise BadSetting("vivace export needs --output_dir: the folder of the bundle")
    folder = Path(command.output_dir)
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise BadSetting(f"{folder} holds something that is no bundle; give another --output_dir")
    return folder


def _plans(command: ExportCommand, loaded: LoadedPolicy) -> dict[str, AccelerationPlan]:
    """Name -> plan, the usual one first; its chunks executed as the user says, where they say it."""
    found = _named(command, loaded)
    return {name: plan.executed(command.loop.execution) for name, plan in found.items()}


def _named(command: ExportCommand, loaded: LoadedPolicy) -> dict[str, AccelerationPlan]:
    if not command.export.plans:
        has_plan = command.export.plan and (command.accel.path or (loaded.path / FILE_NAME).is_file())
        name = _name(command.accel.path) if command.accel.path else OWN
        if has_plan:
            return {name: load_plan(command, loaded)}
        return {PLAIN: AccelerationPlan(loaded.fingerprint)}
    if command.accel.path:
        raise BadSetting(
            "vivace export takes one plan by --accel.path or several by --export.plans, not both"
        )
    found: dict[str, AccelerationPlan] = {}
    for place in command.export.plans:
        if (name := _name(place)) in found:
            raise BadSetting(
                f"export.plans names {name!r} twice; a plan is called by its folder: rename one of them"
            )
        if name == PLAIN:
            found[name] = AccelerationPlan(loaded.fingerprint)
        else:
            found[name] = AccelerationPlan.load(loaded.path if name == OWN else Path(place))
            found[name].check(loaded.fingerprint)
    return found


def _name(place: str | Path) -> str:
    """What a plan is called in a bundle: by its folder, or by its file if that has a name of its own."""
    path = Path(place)
    if path.name == FILE_NAME:
        path = path.resolve().parent
    return path.stem if path.suffix == ".json" else path.name


def _summary(bundle: Bundle, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What was written; of several plans the worst."""
    receipts = {name: bundle.plans[name].receipt for name in names}
    first = receipts[names[0]]
    return {
        "bundle": str(folder),
        "graphs": len(bundle.graphs),
        "megabytes": bundle.megabytes,
        "plans": {name: list(receipt["techniques"]) for name, receipt in receipts.items()},
        "precision": first["precision"],
        "action_error": max(receipt["action_error"] for receipt in receipts.values()),
        "action_error_spread": first["action_error_spread"],
        "graph_error": max(receipt["graph_error"] for receipt in receipts.values()),
        "chunk_error": max(receipt["chunk_error"] for receipt in receipts.values()),
        "lerobot_error": max(receipt["lerobot_error"] for receipt in receipts.values()),
    }
