"""Other people's checkpoints by command line: they run, or one clear line says why not, with exit code 2."""

import json
import os
import shutil
import sys

import lerobot_policies
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from vivace.eval.cli import main


@pytest.fixture
def copy(bare_checkpoint, tmp_path, monkeypatch):
    """A copy of a checkpoint, to be made like a stranger's."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(bare_checkpoint, tmp_path / "policy")


def explain(path, *more):
    return main(["explain", f"--policy.path={path}", *more])


def refused(capsys, path, *more):
    """Run a verb that must refuse; returns its one line."""
    assert main(["calibrate", f"--policy.path={path}", *more]) == 2
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if line.startswith("vivace")]
    assert len(said) == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return said[0]


def other_statistics(folder, change):
    for file in folder.glob("policy_*processor_step_*.safetensors"):
        save_file(change(load_file(file)), file)


def edit(file, change):
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def a1(folder):
    other_statistics(folder, lambda t: {f"so100.buffer.{name}": tensor for name, tensor in t.items()})


def a2(folder):
    other_statistics(folder, lambda t: {"nothing.min": next(iter(t.values()))})


def a3(folder):
    for file in folder.glob("policy_*"):
        file.unlink()


def a5(folder):
    other_statistics(folder, lambda t: {name: tensor.repeat(2) for name, tensor in t.items()})


def a20(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/never-seen"}')


def a24(folder):
    step = {"registry_name": "a_lab_crop_processor", "config": {}}
    edit(folder / "policy_preprocessor.json", lambda p: p["steps"].append(step))


def a25(folder):
    edit(folder / "config.json", lambda c: c.update(type="policy_of_a_plugin"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (a1, "rename 'so100.buffer.observation.state' to 'observation.state' in its state file"),
        (a2, "holds no statistics of observation.state, action, which config.json says are normalised"),
        (a3, "lacks policy_preprocessor.json and policy_postprocessor.json"),
        (a5, "but the feature has (39,): statistics of another dataset"),
        (a20, "is an adapter of lab/never-seen"),
        (a24, "the step 'a_lab_crop_processor', which no installed package offers"),
        (a25, "pip install lerobot_policy_"),
    ],
    ids=lambda it: getattr(it, "__name__", "").upper() or None,
)
def test_one_line(copy, capsys, change, message):
    change(copy)
    assert message in refused(capsys, copy)


def test_a_name_of_the_hub(copy, capsys, monkeypatch):
    """A21: the Hub is asked unless the user says no; the command line does not."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "hf download lerobot/diffusion_pusht" in refused(capsys, "lerobot/diffusion_pusht")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert explain(copy) == 0
    assert "HF_HUB_OFFLINE" not in os.environ


def test_an_encoder_of_the_hub(tmp_path, capsys):
    """A22, G8."""
    folder = shutil.copytree(lerobot_policies.saved("multi_task_dit"), tmp_path / "policy")
    edit(folder / "config.json", lambda c: c.update(text_encoder_name="openai/clip-vit-base-patch16"))
    assert "hf download openai/clip-vit-base-patch16" in refused(capsys, folder)


def test_a_package_of_steps(copy, capsys, tmp_path, monkeypatch):
    """A24: named as lerobot's users name it, the checkpoint runs."""
    a24(copy)
    (tmp_path / "a_lab").mkdir()
    (tmp_path / "a_lab" / "__init__.py").touch()
    (tmp_path / "a_lab" / "steps.py").write_text(
        "from lerobot.processor import IdentityProcessorStep, ProcessorStepRegistry\n"
        "@ProcessorStepRegistry.register(name='a_lab_crop_processor')\n"
        "class Crop(IdentityProcessorStep):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = refused(capsys, copy, "--policy.discover_packages_path=no_lab")
    assert "--policy.discover_packages_path=no_lab cannot be imported" in said
    assert explain(copy, "--policy.discover_packages_path=a_lab") == 0
    del sys.modules["a_lab.steps"], sys.modules["a_lab"]
