"""config.json, and policies that other packages add to lerobot."""

import json
import logging
import sys

import numpy as np
import pytest

from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy
from vivace.policies.plugins import register_plugins
from vivace.policies.session import Session


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "rt_1"}, "policy type 'rt_1'; known types: .* lerobot_policy_"),
        ({"type": ["rt_1"]}, "policy type"),
        ({"dropout_of_tomorrow": 0.1}, "is not a config of lerobot 0.6: .*dropout_of_tomorrow"),
        ({"n_emb": "many"}, "is not a config of lerobot 0.6"),
        ({"n_emb": float("nan")}, "n_emb is nan; numbers are finite"),
        ({"output_features": {}}, "does not fit config.json|has no 'action'"),
    ],
)
def test_configs_that_are_not_read(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(PolicyNotFound, match=message) as refusal:
        load_policy(copy)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "openvla"}', "is an original project's; .* vivace convert"),
        ('{"vla": {"base_vlm": "x"}}', "vivace convert"),
        ('{"architectures": ["Bert"]}', "has no policy type, so it is not lerobot's"),
        ('{"type": ' * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("3", "is not a JSON object"),
    ],
)
def test_configs_of_others(copy, text, message):
    (copy / "config.json").write_text(text)
    with pytest.raises(PolicyNotFound, match=message):
        load_policy(copy)


PLUGIN = """
from dataclasses import dataclass
from lerobot.configs import PreTrainedConfig
from vivace.policies.families.dp_transformer.policy import DPTransformerConfig, DPTransformerPolicy

@PreTrainedConfig.register_subclass("dp_of_a_plugin")
@dataclass
class PluggedConfig(DPTransformerConfig):
    pass

class PluggedPolicy(DPTransformerPolicy):
    config_class = PluggedConfig
    name = "dp_of_a_plugin"
"""


def distribution(folder, name, code):
    """Install a distribution by hand: its metadata, and one module."""
    (folder / f"{name}-1.0.dist-info").mkdir(parents=True)
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    )
    (folder / f"{name}.py").write_text(code)


def test_policies_of_plugins_are_found_and_a_broken_plugin_is_one_line(copy, tmp_path, monkeypatch, caplog):
    """A25."""
    distribution(tmp_path / "site", "lerobot_policy_for_a_test", PLUGIN)
    distribution(tmp_path / "site", "lerobot_policy_broken", "import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    register_plugins.cache_clear()
    edit(copy, type="dp_of_a_plugin")
    with caplog.at_level(logging.WARNING, "vivace"):
        loaded = load_policy(copy)
    assert loaded.staged.spec.type == "dp_of_a_plugin"
    session = Session(loaded)
    chunk = session.predict(session.blank_observation(), [(1, 0)])
    assert chunk.shape == (1, session.spec.n_action_steps, 3)
    assert np.isfinite(chunk).all()
    assert chunk.max() >= 10, "actions are between 10 and 30, in the robot's units"
    assert "lerobot_policy_for_a_test" in sys.modules
    told = [record.getMessage() for record in caplog.records if record.name == "vivace"]
    assert len(told) == 1
    assert "lerobot_policy_broken (No module named 'a_package_that_is_not_there')" in told[0]
    assert caplog.records[-1].exc_info is None
    del sys.modules["lerobot_policy_for_a_test"]
