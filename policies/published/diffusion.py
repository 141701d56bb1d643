"""lerobot's default Diffusion Policy, as published for PushT: 263 million parameters, 100 DDPM steps.

Numbers: lerobot 0.6.1's `DiffusionConfig`, and the features of lerobot/diffusion_pusht.
"""

from vivace.policies.published.architecture import Architecture

DIFFUSION = Architecture(
    source="lerobot/diffusion_pusht",
    cameras={"observation.image": (96, 96)},
    state=2,
    actions=2,
    settings={"pretrained_backbone_weights": None},
    runs_when_built=True,
)
