"""`vivace convert`: a checkpoint of an original project as one of lerobot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.eval.terminal import console


@dataclass(kw_only=True)
class ConvertCommand:
    """Convert a CogACT run folder, an OpenVLA or a Diffusion Policy checkpoint to lerobot's, once.

    Example: vivace convert --run=CogACT-Base --tokenizer=llama2/tokenizer.json
    --unnorm_key=bridge_orig --output_dir=outputs/cogact-base
    """

    run: str
    """CogACT: folder with config.json, dataset_statistics.json and checkpoints/*.pt. OpenVLA: folder with
    config.json and *.safetensors. Diffusion Policy: a .ckpt of a transformer policy, or a training run's
    folder, whose checkpoints/latest.ckpt is read."""
    tokenizer: str | None = None
    """tokenizer.json of the language model; Diffusion Policy has none."""
    unnorm_key: str | None = None
    """Dataset whose statistics bring actions back to the robot's units; of a fine-tuned OpenVLA its own."""
    horizon: int | None = None
    """OpenVLA: actions of a chunk, if it was fine-tuned to write more than one."""
    output_dir: str
    """Folder of the checkpoint."""


def run(command: ConvertCommand) -> tuple[dict[str, Any], bool]:
    """Convert a checkpoint of an original project."""
    from vivace.policies.families.convert import convert

    chunk = {} if command.horizon is None else {"horizon": command.horizon, "n_action_steps": command.horizon}
    with console.status("converting"):
        config = convert(
            Path(command.run),
            Path(command.output_dir),
            Path(command.tokenizer) if command.tokenizer else None,
            command.unnorm_key,
            chunk,
        )
    return {"policy": command.output_dir, "type": config.type, "horizon": config.horizon}, True
