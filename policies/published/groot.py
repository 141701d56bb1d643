"""GR00T N1.7 as published: 16 layers of Cosmos-Reason2-2B (Qwen3-VL), a DiT of 32, 3.1 billion parameters.

Numbers: in lerobot 0.6.1's own code (`GR00T_N1_7_DEFAULTS`, `_cosmos_reason2_qwen3_vl_config`), after
nvidia/GR00T-N1.7-3B; the features are those of a robot of LIBERO, two cameras of 256 pixels. What reads
pictures and text is Qwen3-VL's processor with patches of 16, merged 2 x 2, around a stand-in for its
tokenizer.
"""

from pathlib import Path
from typing import Any

from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config, _tie_unused_qwen_lm_head
from lerobot.policies.groot.modeling_groot import GrootPolicy
from lerobot.policies.groot.processor_groot import GrootN17VLMEncodeStep

from vivace.policies.published.architecture import Architecture
from vivace.policies.published.tokenizer import QWEN, stand_in

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PATCH = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
_FOLDER = "qwen3-vl"


class _Random(GrootPolicy):
    """The policy without a base model to begin with, of which lerobot's own is always a copy."""

    def _create_groot_model(self) -> Any:
        config = self.config
        changes = {
            name: value
            for name in ("num_inference_timesteps", "rtc_ramp_rate")
            if (value := getattr(config, name)) is not None
        }
        model = GR00TN17(GR00TN17Config(**changes), load_backbone_weights=False)
        _tie_unused_qwen_lm_head(model.backbone.model)
        if config.model_params_fp32:
            self._cast_model_parameters_to_fp32(model)
        return model


def _write(folder: Path) -> dict[str, Any]:
    """Write the processor of the language model."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_PATCH),
        tokenizer=stand_in(ids=QWEN, padding_side="left", chat_template=_CHAT),
        video_processor=Qwen3VLVideoProcessor(**_PATCH),
        chat_template=_CHAT,
    ).save_pretrained(folder / _FOLDER)
    return {}


def _ready(pipeline: Any, folder: Path) -> None:
    """Let the preprocessor make its processor of what was written, and make it now."""
    for step in pipeline.steps:
        if isinstance(step, GrootN17VLMEncodeStep):
            step.model_name = str(folder / _FOLDER)
            _ = step.proc


GROOT = Architecture(
    source="nvidia/GR00T-N1.7-3B, as in lerobot's own code",
    cameras={f"observation.images.{name}": (256, 256) for name in ("image", "image2")},
    state=8,
    actions=7,
    write=_write,
    build=_Random,
    ready=_ready,
)
