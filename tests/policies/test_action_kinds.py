"""What actions mean: said by checkpoint, bundle, robot or user; conflicts and silence are refused by name."""

import pytest

from vivace.policies.action_kinds import kinds_of_config, kinds_of_names, read_kinds, settle_kinds
from vivace.policies.errors import BadBundle, BadSetting
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.spec import ActionKind
from vivace.policies.tiny.policies import tiny_cogact, tiny_diffusion, tiny_dp_transformer

A, D, V, U = ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.UNKNOWN
LEKIWI = ("arm_shoulder_pan.pos", "arm_gripper.pos", "x.vel", "y.vel", "theta.vel")


def test_lerobots_names_say_what_they_mean_and_others_nothing():
    assert kinds_of_names(LEKIWI) == (A, A, V, V, V)
    assert kinds_of_names(("x", "pos", "linear_velocity", "arm.torque", "arm.pos.x")) == (U,) * 5


@pytest.mark.parametrize(("exported", "robot", "given", "settled"), [
    ((U, U), (A, V), (U, U), (A, V)),
    ((D, A), (U, U), (U, U), (D, A)),
    ((U, A), (V, U), (U, U), (V, A)),
    ((A, A), (U, U), (V, D), (V, D)),
    ((A, A), (A, V), (A, V), (A, V)),
    ((U, U), (U, U), (D, V), (D, V)),
])  # fmt: skip
def test_what_somebody_says_is_taken(exported, robot, given, settled):
    assert settle_kinds(("a", "b"), exported, robot, given) == settled


@pytest.mark.parametrize(("exported", "robot", "given", "error", "message"), [
    ((A, A), (A, V), (U, U), BadBundle, "'b.vel' is absolute, the robot says velocity; take a bundle"),
    ((A, A), (A, V), (A, A), BadSetting, "action_kinds says that 'b.vel' is absolute, the robot"),
    ((A, U), (A, U), (U, U), BadSetting, "nobody says what the actions b.vel mean, .* for each of a, b.vel"),
])  # fmt: skip
def test_conflicts_and_silence_are_refused_by_name(exported, robot, given, error, message):
    with pytest.raises(error, match=message):
        settle_kinds(("a", "b.vel"), exported, robot, given)


@pytest.mark.parametrize(("values", "message"), [
    (["angle"], "flag has 'angle'; needed: absolute, delta, velocity"),
    (["unknown"], "flag has 'unknown'; needed"),
    (["absolute"] * 2, "flag has 2 entries, an action 3 dimensions"),
    ("absolute", "flag is 'absolute'; a list is needed"),
    (3, "flag is 3; a list is needed"),
    ([["absolute"]], r"flag has \['absolute'\]"),
])  # fmt: skip
def test_what_is_no_kind_is_refused(values, message):
    with pytest.raises(BadSetting, match=message):
        read_kinds(values, 3, "flag")


def test_one_kind_is_for_all_dimensions():
    assert read_kinds(["delta"], 3, "flag") == (D, D, D)
    assert read_kinds([], 2, "flag") == (U, U)


@pytest.mark.parametrize("make", [tiny_dp_transformer, tiny_diffusion, tiny_cogact])
def test_a_checkpoint_that_does_not_say_it_leaves_it_unknown(make):
    policy = make()
    n = policy.config.action_feature.shape[0]
    assert stage(policy).spec.action_kinds == (U,) * n
    assert stage(policy, (V,) * n).spec.action_kinds == (V,) * n


def test_a_checkpoint_may_say_it_and_is_not_contradicted():
    says, silent = tiny_dp_transformer(action_kinds=("absolute", "delta", "velocity")), tiny_dp_transformer()
    assert stage(says).spec.action_kinds == stage(says, (A, D, V)).spec.action_kinds == (A, D, V)
    with pytest.raises(
        BadSetting, match="config.json says its actions are absolute, delta, velocity, here they"
    ):
        stage(says, (A, A, A))
    with pytest.raises(BadSetting, match="config.json's action_kinds has 2 entries"):
        stage(tiny_dp_transformer(action_kinds=("delta", "delta")))
    assert fingerprint(says, ()) == fingerprint(silent, ()), "a plan is not asked what they mean"


def test_one_kind_is_said_for_all_and_too_few_are_refused():
    absolute = ActionKind.ABSOLUTE
    assert kinds_of_config(None, (absolute,), 7) == (absolute,) * 7
    with pytest.raises(BadSetting, match="actions here have 6 dimensions .*, the policy's have 7"):
        kinds_of_config(None, (absolute,) * 6, 7)
