"""The node's parameters: read, refused by name, and fitted to a policy; needs no ROS."""

import re
from dataclasses import fields, replace

import pytest
from ros2_policy import NAMES, SPEC

from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.ros2.parameters.fit import check_rate, fit
from vivace.deploy.ros2.parameters.parameters import UNSET, check_names
from vivace.deploy.ros2.parameters.settings import RENAMED, RosSettings, parameters
from vivace.policies.errors import BadSetting, ObservationMismatch
from vivace.policies.spec import ActionKind, Mode

KEY = "observation.state"
ABSOLUTE, DELTA = ActionKind.ABSOLUTE, ActionKind.DELTA
PLANE = ("linear.x", "angular.z")
POSE = {"pose_topic": "tool", "pose_frame": "base", "pose_layout": ("x", "y")}
TO_POSE = {"command_type": "pose", "command_layout": ("x", "y"), "command_frame": "base"}


def test_parameters_are_settings():
    names = {parameter.name: parameter.default for parameter in parameters()}
    assert names["limits.max_step"] == []
    assert names["joint_fields"] == ["position"]
    assert RosSettings.read(names) == RosSettings()
    assert (names["loop.request_at"], RosSettings.read(names).loop.request_at) == (-1, None), (
        "ROS has no None"
    )
    late = RosSettings.read({"watchdog.hold_s": 1}).watchdog
    assert late == replace(RosSettings().watchdog, hold_s=1.0), "the others keep the node's own defaults"
    assert RosSettings.read({"control_hz": 30, "limits.low": [1, 2.5]}).limits_low == (1.0, 2.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"control_hz": -1.0}, "control_hz=-1.0; needed: 0 to 1000. Control rate"),
        ({"control_hz": float("nan")}, "control_hz has nan; a finite number"),
        ({"control_hz": "fast"}, "control_hz has 'fast'; a number is needed"),
        ({"threads": True}, "threads has True; a whole number is needed"),
        ({"loop.mode": 3}, "loop.mode has 3; a text is needed"),
        ({"autostart": 1}, "autostart has 1; true or false is needed"),
        ({"joint_names": "a"}, "joint_names='a'; a list is needed"),
        ({"loop.mode": "fast"}, "mode='fast' is unknown; the modes: sync, async, rtc"),
        ({"loop.n_action_steps": 0}, "n_action_steps=0; at least 1"),
        ({"loop.mode": "sync", "loop.request_at": 2}, "do nothing in mode sync"),
        ({"watchdog.misses": 1.5}, "watchdog.misses has 1.5; a whole number"),
        ({"provider": "abacus"}, "provider='abacus' is unknown; needed: cpu"),
        ({"command.type": "dance"}, "command.type='dance' is unknown; needed: array, trajectory"),
        ({"action_kinds": ["angle"]}, "action_kinds='angle' is unknown; needed: absolute"),
        ({"joint_fields": ["torque"]}, "joint_fields='torque' is unknown"),
        ({"cameras": ["front"]}, "cameras has 'front'; needed: 'front=camera/image_raw'"),
        ({"cameras": ["a=x", "a=y"]}, "names one camera twice"),
        ({"cameras": ["a=x", "observation.images.a=y"]}, "names one camera twice"),
        (
            {"limits.max_velocty": [1.0]},
            "limits.max_velocty is not known .the nearest is limits.max_velocity.",
        ),
        ({"joint_names": ["a" * 5000]}, "joint_names is too long; at most 4096 characters"),
        ({"task": "a" * 5000}, "task is too long; at most 4096 characters"),
        ({"zzz": 1, "mod": 2}, "zzz is not known .the nearest is .*, nor are mod; vivace-ros --example"),
        ({"cameras": ["a=x"], "camera.fit": ["b=crop"]}, "camera.fit has 'b=crop', but cameras has no"),
        (
            {"cameras": ["a=x"], "camera.fit": ["zoom"]},
            "camera.fit='zoom' is unknown; needed: scale, stretch",
        ),
        ({"camera.unnamed_order": "gbr"}, "camera.unnamed_order='gbr' is unknown; needed: bgr, rgb"),
        ({"pose.layout": ["xyz", "x"]}, "says something twice"),
        ({"pose.layout": ["rpy", "yaw"]}, "says something twice"),
        ({"pose.layout": ["quat"]}, "pose.layout has 'quat'; needed: some of x, y, z, xyz, quaternion"),
        ({"joint_names": ["a", "a"]}, "joint_names .* says something twice"),
        ({"state_parts": ["force"]}, "state_parts='force' is unknown; needed: joints, pose"),
    ],
)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(BadSetting, match=message):
        RosSettings.read(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"joint_names": ("a",)}, "joint_names has 1 joints with 1 fields, the policy's .* has 2 numbers"),
        ({"cameras": ("front=x",)}, "cameras names observation.images.front, which the policy does not look"),
        ({"action_kinds": ("delta",) * 3}, "action_kinds has 3 entries, an action 2 dimensions"),
        ({"command_names": ("a",)}, "command.names has 1 entries"),
        ({"fallback_initial_action": (1.0,)}, "fallback.initial_action has 1 entries"),
        ({"limits_low": (1.0,)}, "limits have 1 numbers, the policy's actions 2"),
        ({"limits_max_step": (1.0, 1.0)}, "need to know where the robot is"),
        ({"command_type": "trajectory"}, "needs command.names"),
        (
            {"command_type": "trajectory", "command_names": NAMES, "action_kinds": ("delta", "velocity")},
            "positions or velocities, but the actions are delta, velocity",
        ),
        (
            {"command_type": "trajectory", "command_names": ("a", "x"), "action_kinds": ("delta",)},
            "displacements of x need the measured positions",
        ),
        ({"loop": LoopSettings(n_action_steps=7)}, "n_action_steps=7, but a chunk has 6 actions; give 1..6"),
        ({"limits_file": "arm.yaml"}, "limits.file='arm.yaml' needs command.names"),
        ({"limits_file": "no.yaml", "command_names": NAMES}, "no limits file at no.yaml"),
        ({"state_parts": ("pose",)}, "state_parts has pose, which needs pose.topic"),
        ({"state_parts": ("pose",), **POSE, "pose_layout": ("other",)}, "pose.layout has 'other'"),
        (
            {"state_parts": ("joints", "pose"), **POSE},
            "2 joints with 1 fields, pose.layout 2 numbers, the policy's",
        ),
        (
            {"command_type": "twist", "command_layout": ("x", "y")},
            "command.layout has 'x'; needed: some of linear",
        ),
        (
            {"command_type": "twist", "command_layout": ("linear",)},
            r"\['linear'\] has 3 numbers, .* actions 2",
        ),
        ({"command_type": "twist", "command_layout": ("linear.x", "linear.x")}, "says something twice"),
        (
            {"command_type": "twist", "command_layout": PLANE},
            "linear.x .* is absolute .* use command.type=pose",
        ),
        ({"command_type": "twist_stamped", "command_layout": PLANE}, "twist_stamped needs command.frame"),
        ({"command_type": "pose", "command_layout": ("x", "y")}, "command.type=pose needs command.frame"),
        ({**TO_POSE, "action_kinds": ("delta",)}, "x of command.layout is delta .* use command.type=twist"),
        (TO_POSE, r"command.fixed is \[\], .* what a layout leaves open of a pose is given there"),
        ({**TO_POSE, "command_fixed": (0.0,) * 7}, "a unit quaternion"),
    ],
)
def test_parameters_that_do_not_fit_the_policy_are_refused(given, message):
    with pytest.raises(BadSetting, match=message):
        fit(RosSettings(**{"joint_names": NAMES, "control_hz": 10.0, **given}), SPEC)


def test_every_setting_of_the_loop_and_the_watchdog_is_a_parameter_with_its_meaning():
    known = {parameter.name: parameter for parameter in parameters()}
    for group, settings in (("loop", LoopSettings), ("watchdog", WatchdogSettings)):
        names = [f.name for f in fields(settings) if f.name != "rtc"]  # which is not one number or text
        assert all(known[f"{group}.{name}"].description for name in names)
    assert known["loop.mode"].meaning.startswith("sync: act, then think; async: think while acting; rtc:")
    assert known["loop.request_at"].meaning.endswith(f"{UNSET}: not given. {UNSET} to 10000.")


@pytest.mark.parametrize(("before", "now"), RENAMED.items())
def test_a_parameter_of_an_earlier_version_is_refused_with_its_new_name(before, now):
    names = [parameter.name for parameter in parameters()]
    assert now in names
    with pytest.raises(BadSetting, match=f"the parameter {re.escape(before)} is called {re.escape(now)} now"):
        check_names([before], names, RENAMED)


def test_inputs_that_no_topic_gives_are_refused():
    settings = RosSettings(joint_names=NAMES)
    seen = {KEY: (2,), "observation.images.front": (3, 4, 5)}
    with pytest.raises(BadSetting, match="looks through observation.images.front, but cameras has"):
        fit(settings, replace(SPEC, observation_shapes=seen))
    with pytest.raises(BadSetting, match="needs observation.environment_state; set environment.topic"):
        fit(settings, replace(SPEC, observation_shapes={"observation.environment_state": (2,)}))
    with pytest.raises(ObservationMismatch, match="needs 'observation.touch'; this node gives"):
        fit(settings, replace(SPEC, observation_shapes={"observation.touch": (2,)}))
    assert fit(settings, SPEC).action_kinds == SPEC.action_kinds
    assert fit(replace(settings, action_kinds=("delta",)), SPEC).action_kinds == (DELTA, DELTA)


def test_the_rate_is_that_of_the_demonstrations_unless_it_is_given():
    assert RosSettings().for_policy(replace(SPEC, control_hz=25)).control_hz == 25.0
    assert RosSettings(control_hz=10.0).for_policy(replace(SPEC, control_hz=25)).control_hz == 10.0
    with pytest.raises(BadSetting, match="does not say at which rate its policy was trained; set control_hz"):
        RosSettings().for_policy(SPEC)


def test_a_mode_that_is_not_given_is_that_of_the_plan_else_sync():
    spec = replace(SPEC, control_hz=25.0)
    assert RosSettings().for_policy(spec).loop.mode == "sync"
    assert RosSettings().for_policy(replace(spec, mode=Mode.RTC)).loop.mode == "rtc"
    given = RosSettings.read({"loop.mode": "async", "loop.request_at": 2})
    assert given.for_policy(replace(spec, mode=Mode.RTC)).loop.mode == "async"
    (told,) = [one for one in parameters() if one.name == "loop.mode"]
    assert (told.default, told.meaning[-17:]) == ("", "Empty: not given.")
    assert RosSettings.read({"loop.mode": ""}).loop.mode is None
    with pytest.raises(BadSetting, match="do nothing in mode sync"):
        RosSettings.read({"loop.request_at": 2}).for_policy(spec)


def test_a_rate_that_no_chunk_can_keep_is_refused():
    settings = RosSettings(control_hz=10.0, loop=LoopSettings(mode="async"))
    check_rate(settings, SPEC, [9.0, 0.3])
    with pytest.raises(BadSetting, match="a chunk takes 410 ms .* its 4 actions last 400 ms at 10 Hz"):
        check_rate(settings, SPEC, [0.5, 0.41])
    check_rate(replace(settings, loop=LoopSettings()), SPEC, [0.5])


def test_cameras_are_named_by_key_or_in_short_and_fitted_one_by_one():
    settings = RosSettings(
        cameras=("observation.image=top", "front=front/compressed"), camera_fit=("crop", "front=pad")
    )
    assert settings.camera_topics == {
        "observation.image": "top",
        "observation.images.front": "front/compressed",
    }
    assert settings.camera_fits == {"observation.image": "crop", "observation.images.front": "pad"}
    assert set(replace(settings, camera_fit=()).camera_fits.values()) == {"scale"}


def test_the_inputs_of_pusht_fit():
    seen = {KEY: (2,), "observation.image": (3, 96, 96), "observation.environment_state": (16,)}
    settings = RosSettings(
        control_hz=10.0,
        cameras=("observation.image=top",),
        environment_topic="keypoints",
        state_parts=("pose",),
        **POSE,
        command_type="pose",
        command_layout=("x", "y"),
        command_frame="base",
        command_fixed=(0.0, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0),
        limits_max_step=(0.1, 0.1),
    )
    spec = replace(SPEC, observation_shapes=seen)
    assert fit(settings, spec) == spec
    with pytest.raises(BadSetting, match="need to know where the robot is"):
        fit(replace(settings, pose_frame="world"), spec)
