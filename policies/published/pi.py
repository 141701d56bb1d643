"""pi0 and pi0.5 as published: PaliGemma of 2 billion and an action expert of 300 million parameters.

Numbers: the sizes are in lerobot's own code (`get_gemma_config`, PaliGemma's vision tower among them);
cameras and widths are those of lerobot/pi0_base and lerobot/pi05_base. In memory lerobot 0.6.1 has
PaliGemma's unused head besides, 0.5 billion more than are stored. Their tokenizer is PaliGemma's, for which a
stand-in is made.
"""

from vivace.policies.published.architecture import Architecture

_CAMERAS = {
    f"observation.images.{name}": (224, 224)
    for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
}
PI0 = Architecture(source="lerobot/pi0_base", cameras=_CAMERAS, state=32, actions=32)
PI05 = Architecture(source="lerobot/pi05_base", cameras=_CAMERAS, state=32, actions=32)
