"""A tokenizer that stands in for one from the Hub: near enough as many tokens as it would give, no words.

Every word is one token, the same for all of them, and so is every digit and every mark, as in the tokenizers
of PaliGemma, SmolLM2 and Qwen, which break rarer words into a few more. A policy of random weights
understands no instruction anyway; how long it takes to read one depends on how many tokens there are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

_PIECES = r"\s(?=\d)|\d|\w+|[^\w\s]|\n"
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SMOLVLM = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
"""Attribute -> token of SmolVLM's tokenizer."""
QWEN = {
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
"""Token -> id of Qwen3-VL's tokenizer, by which its model knows pictures."""


def stand_in(ids: Mapping[str, int] | None = None, **more: Any) -> PreTrainedTokenizerFast:
    """Make one.

    Args:
        ids: special tokens of the tokenizer it stands for -> their ids.
        **more: further arguments of transformers' class.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    named = dict(more.get("extra_special_tokens", {})).values()
    words = {i: token for i, token in enumerate([*_SPECIAL, *named, "\n", *"0123456789"])}
    words |= {number: token for token, number in (ids or {}).items()}
    vocabulary = {words.get(i, f"<unused{i}>"): i for i in range(max(words) + 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=[*named, *(ids or {})],
        **more,
    )


@contextmanager
def instead_of_the_hub() -> Iterator[None]:
    """Let every tokenizer that is asked for by a name on the Hub be a stand-in meanwhile.

    lerobot's own factories of processors name some of them, which no setting changes.
    """
    own = AutoTokenizer.__dict__["from_pretrained"]

    def local(tokenizer_class: type, name: Any, *args: Any, **kwargs: Any) -> Any:
        is_here = Path(name).is_dir()
        return own.__func__(tokenizer_class, name, *args, **kwargs) if is_here else stand_in()

    AutoTokenizer.from_pretrained = classmethod(local)
    try:
        yield
    finally:
        AutoTokenizer.from_pretrained = own
