"""Where a checkpoint is: folders of training runs, the Hub and its cache; and what is no checkpoint."""

import shutil

import pytest
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from vivace.policies.checkpoint.find import resolve
from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy


def put_into_cache(cache, repo, folder, revision="main", commit="0" * 39 + "1"):
    """Lay a folder into the Hub's cache as a download does: blobs, links to them, and a branch."""
    home = cache / repo_folder_name(repo_id=repo, repo_type="model")
    snapshot = home / "snapshots" / commit
    for made in (snapshot, home / "refs", home / "blobs"):
        made.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = home / "blobs" / f"{commit[-1]}{i}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, which is not asked."""
    found = tmp_path / "cache"
    found.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(found))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return found


def test_a_policy_of_the_hub_is_found_in_its_cache(cache, low_dim):
    """A21."""
    snapshot = put_into_cache(cache, "lab/push", low_dim)
    assert load_policy("lab/push").path == snapshot
    assert load_policy("lab/push").fingerprint == load_policy(low_dim).fingerprint


def test_a_revision_of_a_policy_of_the_hub(cache, low_dim):
    """A21."""
    other = put_into_cache(cache, "lab/push", low_dim, "v2", "0" * 39 + "2")
    assert resolve("lab/push@v2") == other
    assert resolve("lab/push@" + "0" * 39 + "2") == other
    with pytest.raises(PolicyNotFound, match="hf download lab/push --revision v3"):
        resolve("lab/push@v3")


def test_a_name_that_is_nowhere(cache, monkeypatch):
    """A21, G8: whether the Hub was asked is said."""
    with pytest.raises(PolicyNotFound, match="no folder lab/none, .* HF_HUB_OFFLINE is set, .* hf download"):
        resolve("lab/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("vivace.policies.checkpoint.hub.snapshot_download", _no_network)
    with pytest.raises(PolicyNotFound, match=r"the Hub cannot be reached \(no route\)"):
        resolve("lab/none")


def _no_network(*args, **kwargs):
    raise ConnectionError("no route")


def test_a_folder_goes_before_the_hub(cache, low_dim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_into_cache(cache, "lab/push", low_dim)
    shutil.copytree(low_dim, tmp_path / "lab" / "push")
    assert str(resolve("lab/push")) == "lab/push"


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/000200"])
def test_a_training_run_stands_for_its_last_policy(low_dim, tmp_path, place):
    step = tmp_path / "run" / "checkpoints" / "000200"
    shutil.copytree(low_dim, step / "pretrained_model")
    (step.parent / "last").symlink_to("000200")
    assert resolve(tmp_path / "run" / place).samefile(step / "pretrained_model")


def test_a_training_run_without_a_last_step_names_its_steps(low_dim, tmp_path):
    for step in ("000100", "000200"):
        shutil.copytree(low_dim, tmp_path / "run" / "checkpoints" / step / "pretrained_model")
    with pytest.raises(PolicyNotFound, match="its steps: 000100, 000200, give checkpoints/000200"):
        resolve(tmp_path / "run")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["meta/info.json"], "is a LeRobotDataset; give the policy that learned from it"),
        (["checkpoints/latest.ckpt"], "is Diffusion Policy's own; .* vivace convert"),
        (["manifest.json"], "is a bundle of vivace export"),
        (["config.json", "dataset_statistics.json"], "vivace convert"),
        (["config.json", "pytorch_model.bin"], "as a pickle, which is never opened here"),
        (["config.json"], "has no model.safetensors"),
        ([], "has no config.json"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(PolicyNotFound, match=message):
        resolve(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "latest.ckpt").touch()
    with pytest.raises(PolicyNotFound, match="latest.ckpt is a file; .* vivace convert --run="):
        resolve(tmp_path / "latest.ckpt")
