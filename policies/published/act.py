"""ACT as lerobot publishes it for ALOHA in simulation: 52 million parameters.

Numbers: lerobot 0.6.1's `ACTConfig`, whose defaults are those of the paper (arXiv 2304.13705, table III) but
for one decoder layer, and the features of lerobot/act_aloha_sim_transfer_cube_human: one camera of 480 x 640,
two arms of seven joints. The real ALOHA has four such cameras: `--policy.cameras=4`.
"""

from vivace.policies.published.architecture import Architecture

ACT = Architecture(
    source="lerobot/act_aloha_sim_transfer_cube_human; arXiv 2304.13705, table III",
    cameras={"observation.images.top": (480, 640)},
    state=14,
    actions=14,
    settings={"pretrained_backbone_weights": None},
)
