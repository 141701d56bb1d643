"""SmolVLA at its true size with random weights, and recorded observations that it fits.

    python tests/support/true_size_smolvla.py FOLDER

writes FOLDER/policy, a lerobot checkpoint of 450 million parameters (1.8 GB; its language model's config
and a tokenizer that stands in for its own lie beside it), and FOLDER/obs.npz, 72 observations of 3 cameras
in six episodes. How long a chunk takes depends on neither weights nor pictures.
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.policies.factory import make_policy_config, make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from vivace.policies.published.build import published
from vivace.policies.published.weights import fill

EPISODES, FRAMES, EDGE = 6, 12, 256
TASK = "Put the cup on the shelf"


def observations(policy: SmolVLAPolicy) -> dict[str, np.ndarray]:
    """Rows of a file that `--data.file` reads; pictures of noise, states and actions that wander."""
    random, n = np.random.default_rng(0), EPISODES * FRAMES
    config = policy.config
    rows = {
        key: random.integers(0, 256, (n, EDGE, EDGE, 3), np.uint8) for key in sorted(config.image_features)
    }
    for key, feature in (
        ("observation.state", config.robot_state_feature),
        ("action", config.action_feature),
    ):
        rows[key] = random.normal(0, 0.1, (n, *feature.shape)).cumsum(0).astype(np.float32)
    return {**rows, "task": np.array([TASK] * n), "episode": np.repeat(np.arange(EPISODES), FRAMES)}


def main(folder: Path) -> None:
    """Write both."""
    architecture = published("smolvla")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        **architecture.features(None),
        **architecture.settings,
        **architecture.write(folder.resolve()),
    }
    policy = SmolVLAPolicy(make_policy_config("smolvla", **settings, device="cpu"))
    fill(policy, policy.model.action_in_proj.weight.device, 0)
    rows = observations(policy)
    np.savez(folder / "obs.npz", **rows)
    numbers = {key: rows[key] for key in ("observation.state", "action")}
    stats = {key: {"mean": it.mean(0), "std": it.std(0)} for key, it in numbers.items()}
    policy.save_pretrained(folder / "policy")
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats):
        pipeline.save_pretrained(folder / "policy")
    print(f"{sum(p.numel() for p in policy.parameters()) / 1e6:.0f} M parameters in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
