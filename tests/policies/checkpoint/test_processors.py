"""Processor files: steps that are not installed, and files that mean harm."""

import json
import sys

import pytest

from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy

PRE = "policy_preprocessor.json"


def edit(folder, change, name=PRE):
    pipeline = json.loads((folder / name).read_text())
    change(pipeline)
    (folder / name).write_text(json.dumps(pipeline))


def refusal(folder):
    with pytest.raises(PolicyNotFound) as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_step_that_nobody_registered(copy):
    """A24."""
    edit(copy, lambda p: p["steps"].append({"registry_name": "my_lab_crop_processor", "config": {}}))
    assert "the step 'my_lab_crop_processor', which no installed package offers" in refusal(copy)
    assert "--policy.discover_packages_path=<package>" in refusal(copy)


def test_a_step_of_a_package_that_is_not_installed(copy):
    """A24."""
    edit(copy, lambda p: p["steps"].append({"class": "my_lab_steps.Crop", "config": {}}))
    assert "the step 'my_lab_steps.Crop', which cannot be imported" in refusal(copy)


@pytest.mark.parametrize(
    "place", ["subprocess.Popen", "pathlib.Path", "lerobot.processor.pipeline.hf_hub_download"]
)
def test_what_is_no_step_is_never_called(copy, place, tmp_path):
    """lerobot would call it with the settings beside it."""
    harm = {"class": place, "config": {"args": ["touch", str(tmp_path / "harm")]}}
    edit(copy, lambda p: p["steps"].append(harm))
    assert f"the step '{place}', which is no processor step" in refusal(copy)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("state", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_a_state_file_lies_beside_its_manifest(copy, state):
    edit(copy, lambda p: p["steps"][-1].update(state_file=state))
    assert "it has to lie beside it" in refusal(copy)


def test_a_state_file_that_is_not_there(copy):
    next(copy.glob("policy_preprocessor_step_*.safetensors")).unlink()
    assert "lacks usable processor files" in refusal(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"steps": 3}', "has no list of steps"),
        ('{"steps": [3]}', "has no list of steps"),
        ('{"steps": [{"registry_name": "normalizer_processor", "config": {"eps": NaN}}]}', "is nan"),
        ('{"steps": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
    ],
)
def test_files_that_are_damaged(copy, text, message):
    (copy / PRE).write_text(text)
    assert message in refusal(copy)


def test_a_pipeline_without_a_device_step_loads(copy):
    edit(copy, lambda p: p.update(steps=[s for s in p["steps"] if s["registry_name"] != "device_processor"]))
    assert load_policy(copy)


def test_a_package_of_steps_is_named_by_a_flag(copy, tmp_path, monkeypatch, capsys):
    """A24: as lerobot's users name packages of environments and robots."""
    from vivace.eval.cli import _discover
    from vivace.eval.plugins import plugins
    from vivace.policies.errors import BadSetting

    (tmp_path / "my_lab_steps.py").write_text(
        "from lerobot.processor import IdentityProcessorStep, ProcessorStepRegistry\n"
        "@ProcessorStepRegistry.register(name='my_lab_test_step')\n"
        "class Mine(IdentityProcessorStep):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    edit(copy, lambda p: p["steps"].append({"registry_name": "my_lab_test_step", "config": {}}))
    assert "my_lab_test_step" in refusal(copy)
    rest = _discover(["--policy.path=x", "--policy.discover_packages_path=my_lab_steps", "--seed=1"])
    assert rest == ["--policy.path=x", "--seed=1"]
    assert plugins() == ("my_lab_steps",)
    assert load_policy(copy)
    del sys.modules["my_lab_steps"]
    with pytest.raises(BadSetting, match="--policy.discover_packages_path=nowhere_at_all cannot be imported"):
        _discover(["--policy.discover_packages_path=nowhere_at_all"])
    assert plugins() == (), "the next command in this process names its own"
