"""What works on a machine without ROS: import, hint, example parameters, launch file."""

import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from vivace.deploy.ros2 import node as ros2_node
from vivace.deploy.ros2.parameters.fit import fit
from vivace.deploy.ros2.parameters.settings import RosSettings, parameters
from vivace.policies.spec import ActionKind, PolicySpec

PURE = (
    "messages.vectors messages.images messages.pose messages.sensors messages.command parameters.parameters "
    "parameters.settings parameters.example parameters.fit sources "
    "robot driver diagnostics node"
)


def test_the_node_imports_without_ros_and_says_what_is_missing():
    code = "import sys; sys.modules['rclpy'] = None; sys.modules['torch'] = None; "
    code += "; ".join(f"import vivace.deploy.ros2.{name}" for name in PURE.split())
    code += "; sys.exit(ros2_node.main([]))".replace("ros2_node", "vivace.deploy.ros2.node")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "vivace-ros: no package 'rclpy'; source a ROS 2 installation" in done.stderr
    assert "pip install 'vivace[ros]'" in done.stderr


def test_usage(capsys):
    assert ros2_node.main(["--help"]) == 0
    assert "vivace-ros --example" in capsys.readouterr().out
    assert ros2_node.main(["--what"]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_example_is_valid_and_fits_a_policy(capsys):
    assert ros2_node.main(["--example"]) == 0
    text = capsys.readouterr().out
    given = _flat(yaml.safe_load(text)["/**"]["ros__parameters"])
    everything = _flat(yaml.safe_load(text.replace("#= ", ""))["/**"]["ros__parameters"])
    assert everything == {p.name: p.default for p in parameters()} | given, "each is there, at its default"
    words = " ".join(text.replace("#", " ").split())
    assert all(" ".join(parameter.meaning.split()) in words for parameter in parameters()), "ranges too"
    assert "0.001 to 3600.0." in words
    settings = RosSettings.read({p.name: p.default for p in parameters()} | given)
    arm = PolicySpec(
        type="any",
        action_dim=6,
        horizon=16,
        n_obs_steps=1,
        n_action_steps=8,
        observation_shapes={
            "observation.state": (6,),
            "observation.images.front": (3, 96, 96),
            "observation.images.wrist": (3, 96, 96),
        },
        action_kinds=(ActionKind.ABSOLUTE,) * 6,
        blocks=(),
    )
    assert fit(settings.for_policy(replace(arm, control_hz=20.0)), arm) == arm
    assert settings.camera_topics["observation.images.wrist"].endswith("/compressed")


def _flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_the_launch_file_describes_the_node(monkeypatch, capsys):
    """`launch` is not on PyPI: what the file says is checked, not that a ROS installation runs it."""

    def recorder(kind):
        return lambda *args, **options: SimpleNamespace(kind=kind, args=args, **options)

    for module, names in {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.actions": ["LifecycleNode"],
        "launch_ros.parameter_descriptions": ["ParameterValue"],
    }.items():
        fake = ModuleType(module)
        for name in names:
            setattr(fake, name, recorder(name))
        monkeypatch.setitem(sys.modules, module, fake)
    assert ros2_node.main(["--launch-file"]) == 0
    path = capsys.readouterr().out.strip()
    space: dict = {}
    with open(path) as file:
        exec(compile(file.read(), path, "exec"), space)  # as ros2 launch does
    *arguments, node = space["generate_launch_description"]().args[0]
    assert [argument.args[0] for argument in arguments] == ["params", "namespace", "use_sim_time"]
    assert (node.kind, node.executable, node.name) == ("LifecycleNode", "vivace-ros", "vivace")
    used = {node.namespace.args[0], node.parameters[0].args[0]}
    used.add(node.parameters[1]["use_sim_time"].args[0].args[0])
    assert used == {"params", "namespace", "use_sim_time"}


@pytest.mark.parametrize("parameter", parameters(), ids=lambda parameter: parameter.name)
def test_every_parameter_is_described(parameter):
    assert parameter.description.endswith((".", "]."))
    assert len(parameter.description) > 15
