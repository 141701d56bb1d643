"""lerobot's default Diffusion Policy at its true size, with random weights, and recordings that it fits.

    python tests/support/default_diffusion.py FOLDER [DOWN_DIMS …]

writes FOLDER/policy, every setting lerobot's default (a U-Net of 512, 1024 and 2048 channels, DDPM-100: 263
million parameters) but for the weights of its ResNet, which would be downloaded, and FOLDER/data, a
LeRobotDataset of PushT's form: a state of 2, a camera of 96 pixels, 10 Hz. How long a chunk takes depends on
neither weights nor pictures. Other DOWN_DIMS make a smaller one.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors

STATE, CAMERA, EDGE = (2,), "observation.image", 96
EPISODES, FRAMES, FPS = 6, 30, 10


def config(**changes) -> DiffusionConfig:
    """lerobot's defaults for the features of PushT."""
    return DiffusionConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, STATE),
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, EDGE, EDGE)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, STATE)},
        device="cpu",
        pretrained_backbone_weights=None,
        **changes,
    )


def record(folder: Path) -> dict:
    """Record episodes of a wandering pusher; returns their statistics."""
    position = {"dtype": "float32", "shape": STATE, "names": ["x", "y"]}
    picture = {"dtype": "image", "shape": (EDGE, EDGE, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": position, "action": position, CAMERA: picture}
    dataset = LeRobotDataset.create("made/up", fps=FPS, features=features, root=folder, use_videos=False)
    random = np.random.default_rng(0)
    for _ in range(EPISODES):
        path = 256 + np.cumsum(random.normal(0, 12, (FRAMES + 1, *STATE)), axis=0).astype(np.float32)
        for now, after in zip(path, path[1:], strict=False):
            seen = random.integers(0, 256, (EDGE, EDGE, 3), np.uint8)
            dataset.add_frame({"observation.state": now, "action": after, CAMERA: seen, "task": "push the T"})
        dataset.save_episode()
    dataset.finalize()
    return LeRobotDataset("made/up", root=folder).meta.stats


def main(folder: Path, *down_dims: int) -> None:
    """Write both."""
    stats = record(folder / "data")
    torch.manual_seed(0)
    policy = DiffusionPolicy(config(**({"down_dims": down_dims} if down_dims else {})))
    policy.save_pretrained(folder / "policy")
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats):
        pipeline.save_pretrained(folder / "policy")
    print(f"{sum(p.numel() for p in policy.parameters()) / 1e6:.1f} M parameters in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
