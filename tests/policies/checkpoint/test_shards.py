"""Weights in several files with an index, as transformers and huggingface_hub save large ones."""

import json
import shutil
from types import SimpleNamespace

import lerobot_policies
import pytest
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from vivace.accel.plan import AccelerationPlan
from vivace.deploy.lerobot.checkpoint import HARD, write
from vivace.policies.checkpoint import shards
from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy

INDEX = "model.safetensors.index.json"


def in_shards(folder, target, size):
    """A checkpoint with its weights cut into files of a size in bytes, by huggingface_hub itself."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    save_torch_state_dict(weights, target, max_shard_size=size)
    assert len(list(target.glob("model-0000*-of-*.safetensors"))) > 1
    return target


@pytest.fixture
def sharded(low_dim, tmp_path):
    return in_shards(low_dim, tmp_path / "sharded", 20_000)


def refusal(folder):
    with pytest.raises(PolicyNotFound) as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_it_is_the_policy_of_one_file(low_dim, sharded):
    assert load_policy(sharded).fingerprint == load_policy(low_dim).fingerprint


@pytest.mark.parametrize("kind", ["act", "pi0"])
def test_policies_whose_classes_load_in_ways_of_their_own(tmp_path, kind):
    whole = lerobot_policies.saved(kind)
    size = (whole / "model.safetensors").stat().st_size // 3
    assert load_policy(in_shards(whole, tmp_path / kind, size)).fingerprint == load_policy(whole).fingerprint


def test_lerobots_checkpoint_of_it_has_its_weights_linked(sharded, tmp_path):
    loaded = load_policy(sharded)
    assert write(loaded, AccelerationPlan(loaded.fingerprint), tmp_path / "fast") == HARD
    files = sorted(sharded.glob("model-*"))
    assert all((tmp_path / "fast" / file.name).samefile(file) for file in files)
    assert load_policy(tmp_path / "fast").fingerprint == loaded.fingerprint


def test_statistics_inside_of_them(low_dim, tmp_path):
    """A4, in several files."""
    former = shutil.copytree(low_dim, tmp_path / "former")
    held = load_file(next(former.glob("policy_preprocessor_step_*.safetensors")))
    for file in former.glob("policy_*"):
        file.unlink()
    names = {"observation.state": "normalize_inputs", "action": "unnormalize_outputs"}
    buffers = {}
    for key, place in names.items():
        for statistic in ("min", "max"):
            tensor = held[f"{key}.{statistic}"]
            buffers[f"{place}.buffer_{key.replace('.', '_')}.{statistic}"] = tensor
    file = former / "model.safetensors"
    save_file(load_file(file) | buffers, file)
    folder = in_shards(former, tmp_path / "sharded", 20_000)
    assert load_policy(folder).fingerprint == load_policy(former).fingerprint


def test_a_file_that_is_not_there(sharded):
    gone = sorted(sharded.glob("model-*"))[1]
    gone.unlink()
    assert f"lacks {gone.name}, which {INDEX} names" in refusal(sharded)


def test_a_file_that_is_truncated(sharded):
    file = sorted(sharded.glob("model-*"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file.name} is truncated or not safetensors" in refusal(sharded)


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_a_file_outside_of_the_folder(sharded, place):
    change_index(sharded, lambda places: places.update(dict.fromkeys(list(places)[:1], place)))
    assert "which is outside of its folder" in refusal(sharded)


def test_a_tensor_that_is_in_two_files(sharded):
    first, second = sorted(sharded.glob("model-*"))[:2]
    tensors = load_file(first)
    twice = next(iter(tensors))
    save_file(load_file(second) | {twice: tensors[twice] + 1}, second)
    assert f"holds '{twice}', also in {first.name}" in refusal(sharded)


def test_files_of_another_checkpoint(sharded):
    first = sorted(sharded.glob("model-*"))[0]
    tensors = load_file(first)
    name = next(iter(tensors))
    save_file({f"{other}.of_another": tensor for other, tensor in tensors.items()}, first)
    assert f"says that {first.name} holds '{name}', which it does not" in refusal(sharded)
    save_file(tensors | {"more": tensors[name].clone()}, first)
    assert "holds 'more', which is not in the index" in refusal(sharded)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_an_index_without_a_map(sharded, text):
    (sharded / INDEX).write_text(text)
    assert "has no weight_map" in refusal(sharded)


def test_a_disk_that_is_full(sharded, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "shutil", SimpleNamespace(copyfileobj=full))
    said = refusal(sharded)
    assert "cannot be put together in" in said
    assert "(No space left on device); 0.0 GB are needed there: let TMPDIR be another place" in said
