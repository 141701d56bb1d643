"""`vivace export`: a bundle for the robot, parity proven on observations of the simulator."""

from pathlib import Path
from typing import Any

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.deploy.export import export
from vivace.deploy.signature import private_key
from vivace.envs.registry import instruction
from vivace.eval.gather import JUDGEMENT_SEED
from vivace.eval.plans import load, load_plan, observe
from vivace.eval.settings import ExportCommand
from vivace.eval.terminal import progress
from vivace.policies.errors import BadSetting


def run(command: ExportCommand) -> tuple[dict[str, Any], bool]:
    """Export, prove, say what was written."""
    if command.output_dir is None:
        raise BadSetting("vivace export needs --output_dir: the folder of the bundle")
    folder = Path(command.output_dir)
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise BadSetting(f"{folder} holds something that is no bundle; give another --output_dir")
    if command.export.sign_key:
        private_key(command.export.sign_key)  # before a minute's work
    loaded = load(command)
    has_plan = command.export.plan and (command.accel.path or (loaded.path / FILE_NAME).is_file())
    plan = load_plan(command, loaded) if has_plan else AccelerationPlan(loaded.fingerprint)
    texts = command.export.instructions or [instruction(command.env.type, task) for task in command.env.tasks]
    data = observe(command, loaded, seed=JUDGEMENT_SEED, samples=command.export.samples)
    with progress() as bars:
        bar = bars.add_task("exporting steps", total=None)

        def on_step(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        options = command.export
        bundle = export(loaded, plan, data, folder, texts, on_step, options.precision, options.sign_key)
    summary = {
        "bundle": str(folder),
        "graphs": len(bundle.graphs),
        "megabytes": bundle.megabytes,
        "techniques": list(bundle.receipt["techniques"]),
        "precision": bundle.receipt["precision"],
        "action_error": bundle.receipt["action_error"],
        "action_error_spread": bundle.receipt["action_error_spread"],
        "graph_error": bundle.receipt["graph_error"],
        "chunk_error": bundle.receipt["chunk_error"],
    }
    return summary, True
