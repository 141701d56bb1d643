"""Time `lerobot-eval` before and after `vivace accelerate`, on pusht.

    python tests/support/timed_lerobot_eval.py

lerobot's diffusion, DDPM-100, a small U-Net of random weights: no success is claimed, only that it is the
same. Its `main` runs every checkpoint once a round, in one process, with one thread; told are `eval_s`,
lerobot's own time of an evaluation, and the processor's.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from lerobot.scripts.lerobot_eval import main as lerobot_eval
from lerobot_commands import pusht_checkpoint
from safetensors.torch import load_file

from vivace.deploy.lerobot import plugin  # noqa: F401  registers the type, as the plug-in does
from vivace.eval.cli import main

ROUNDS = 3
FEW = ["--accel.samples=1", "--accel.judged_samples=1"]
PLANS = {
    "identity": ["--calibrate=true", "--accel.techniques=[]", *FEW],
    "exact work alone": [],
    "default plan": ["--calibrate=true", *FEW],
}


def evaluated(policy: Path, out: Path) -> tuple[float, float, list[bool]]:
    """Seconds by the clock and of the processor, and successes."""
    world = ["--env.type=pusht", "--env.obs_type=environment_state_agent_pos", "--env.episode_length=24"]
    flags = ["--eval.n_episodes=2", "--eval.batch_size=1", "--eval.use_async_envs=false", "--seed=7"]
    sys.argv = ["lerobot-eval", f"--policy.path={policy}", "--policy.device=cpu", *world, *flags]
    sys.argv.append(f"--output_dir={out}")
    began = time.process_time()
    lerobot_eval()
    cpu_s = time.process_time() - began
    info = json.loads((out / "eval_info.json").read_text())
    return info["overall"]["eval_s"], cpu_s, info["per_task"][0]["metrics"]["successes"]


def measure(folder: Path) -> None:
    """Print a table of medians."""
    size = {"down_dims": (32, 64, 128), "kernel_size": 5, "n_groups": 8, "diffusion_step_embed_dim": 64}
    run = {"horizon": 16, "n_action_steps": 8, "num_train_timesteps": 100}
    policies = {"lerobot's own": pusht_checkpoint(folder / "base", **size, **run)}
    weights = sum(value.numel() for value in load_file(folder / "base" / "model.safetensors").values())
    print(f"{weights / 1e6:.1f} M parameters")
    for name, flags in PLANS.items():
        policies[name] = folder / name
        assert main(["accelerate", str(folder / "base"), str(folder / name), *flags]) == 0
    runs: dict[str, list] = {name: [] for name in policies}
    for i in range(ROUNDS):
        for name, policy in policies.items():
            runs[name].append(evaluated(policy, folder / f"{name}-{i}"))
    wall, cpu = (
        {name: float(np.median([one[at] for one in found])) for name, found in runs.items()} for at in (0, 1)
    )
    own = runs["lerobot's own"][0][2]
    for name, found in runs.items():
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(runs["lerobot's own"], found, strict=True)]
        assert all(one[2] == own for one in found)
        ratio = f"{np.median(ratios):.2f} times as fast"
        print(f"{name}: {wall[name]:.1f} s, {ratio}, {cpu[name]:.1f} s of the processor")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        measure(Path(folder))
