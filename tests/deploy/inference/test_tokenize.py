"""What is said of an instruction that a bundle cannot read."""

from types import SimpleNamespace

import pytest

from vivace.deploy.bundle.form import PromptSettings
from vivace.deploy.inference.tokenize import InstructionTokenizer
from vivace.policies.errors import BadSetting


@pytest.mark.parametrize("length", [2, 4096])
def test_a_message_is_short_whatever_the_instructions_are(length):
    prompts = {f"{i} " + "x" * 5000: tuple(range(9)) for i in range(100)}
    bundle = SimpleNamespace(prompt=PromptSettings(length=length, pad=0), prompts=prompts)
    tokenizer = InstructionTokenizer(bundle)
    for task in (next(iter(prompts)), "y" * 5000, " "):
        if length > 9 and task in prompts:
            assert len(tokenizer(task, {})) == 2
            continue
        with pytest.raises(BadSetting) as refused:
            tokenizer(task, {})
        assert len(str(refused.value)) < 1500
