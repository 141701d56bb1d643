"""A20: LoRA adapters as lerobot's training saves them, loaded on their base and merged."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy


@pytest.fixture
def adapter(low_dim, tmp_path):
    """An adapter of the action network's feed-forward layers, and the policy with it on."""
    policy = load_policy(low_dim).policy
    policy.name_or_path = str(low_dim)  # lerobot's wrap_with_peft sets it
    torch.manual_seed(0)
    wrapped = get_peft_model(policy, LoraConfig(r=2, target_modules=["linear1", "linear2"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    wrapped.config.use_peft = True
    folder = tmp_path / "adapter"
    wrapped.save_pretrained(folder)
    wrapped.config.save_pretrained(folder)
    for file in low_dim.glob("policy_*"):
        shutil.copy(file, folder)
    return folder, wrapped.eval()


def test_an_adapter_is_merged_into_its_base(adapter, low_dim):
    folder, wrapped = adapter
    assert not (folder / "model.safetensors").exists()
    loaded = load_policy(folder)
    x, t, cond = torch.randn(2, 8, 3), torch.tensor([3, 50]), torch.randn(2, 2, 5)
    with torch.no_grad():
        wanted, without = wrapped.model.model(x, t, cond), load_policy(low_dim).policy.model(x, t, cond)
        found = loaded.policy.model(x, t, cond)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - without).abs().max() > 0.01
    assert loaded.fingerprint.weights != load_policy(low_dim).fingerprint.weights
    assert type(loaded.policy).__name__ == "DPTransformerPolicy"
    assert not any("lora" in name for name in loaded.policy.state_dict())


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def less(tensors):
    return dict(list(tensors.items())[1:])


def more(tensors):
    return tensors | {"base_model.model.model.elsewhere.lora_A.weight": torch.zeros(2, 2)}


def wider(tensors):
    return {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [less, more, wider])
def test_an_adapter_of_another_policy_is_refused(adapter, change):
    folder, _ = adapter
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(PolicyNotFound, match="adapter_model.safetensors does not fit its base") as refusal:
        load_policy(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("lab/never-seen", "is an adapter of lab/never-seen: .* write where it is into base_model_name"),
        ("", "does not name the policy that the adapter was trained on"),
        (None, "does not name the policy"),
    ],
)
def test_a_base_that_is_not_there(adapter, base, message):
    folder, _ = adapter
    edit(folder, base_model_name_or_path=base)
    with pytest.raises(PolicyNotFound, match=message):
        load_policy(folder)


def test_an_adapter_of_an_adapter_and_one_without_weights(adapter):
    folder, _ = adapter
    edit(folder, base_model_name_or_path=str(folder))
    with pytest.raises(PolicyNotFound, match="an adapter itself; merge that one first"):
        load_policy(folder)
    (folder / "adapter_model.safetensors").unlink()
    edit(folder, base_model_name_or_path="zoo/push")
    with pytest.raises(PolicyNotFound):
        load_policy(folder)
