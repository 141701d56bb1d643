"""What a command's policy is loaded as."""

import pytest

from vivace.eval import subject as plans
from vivace.eval.verbs.export import ExportCommand
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind


def test_actions_mean_what_the_environment_says_unless_export_is_told_otherwise(monkeypatch, tiny_loaded):
    asked = []

    def load_policy(path, device, kinds):
        asked.append(kinds)
        return tiny_loaded

    monkeypatch.setattr(plans, "load_policy", load_policy)
    plans.load(ExportCommand())
    plans.load(ExportCommand(), ["velocity"])
    assert asked == [(ActionKind.DELTA,) * 3 + (ActionKind.ABSOLUTE,), (ActionKind.VELOCITY,) * 4]
    with pytest.raises(
        BadSetting, match="--export.action_kinds has 'speed'; needed: absolute, delta, velocity"
    ):
        plans.load(ExportCommand(), ["speed"])
