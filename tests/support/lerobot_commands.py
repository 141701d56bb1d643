"""lerobot's own commands as its users type them, in processes of their own, with our plug-in or without.

A plug-in is a distribution that lerobot finds by its name; here it is installed into a folder on the path.
`spy` is one more, of the tests: it writes down what every environment is told to do.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.tiny.policies import tiny_diffusion

SOURCE = Path(__file__).parents[2]
PLUGIN = SOURCE / "deploy" / "lerobot"
PUSHT = ["--env.type=pusht", "--env.obs_type=environment_state_agent_pos", "--env.episode_length=24"]
SPY = """
import os, gymnasium, numpy
told = []
step = gymnasium.vector.SyncVectorEnv.step
def noted(self, actions):
    told.append(numpy.array(actions))
    numpy.save(os.environ["SPY"], numpy.stack(told))
    return step(self, actions)
gymnasium.vector.SyncVectorEnv.step = noted
"""


def install_plugin(folder: Path) -> Path:
    """Install our plug-in as pip does, into a folder that goes onto the path."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "lerobot_policy_vivace.py"):
        shutil.copy(PLUGIN / name, source)
    there = folder / "plugin"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", f"--target={there}", str(source)], check=True, timeout=300)
    return there


def write_plugin(folder: Path, name: str, code: str) -> Path:
    """Write a distribution of one module, as pip would have installed it, into a folder of its own."""
    there = folder / name
    info = there / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (there / f"{name}.py").write_text(code)
    return there


def run(command: str, *flags: object, plugins: tuple[Path, ...] = (), cwd: Path, **variables: str):
    """Run one of lerobot's commands; its output is kept, stderr with stdout."""
    path = os.pathsep.join([*map(str, plugins), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **variables}
    found = Path(sys.executable).with_name(command)
    return subprocess.run(
        [str(found), *map(str, flags)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )


def pusht_checkpoint(folder: Path, **changes) -> Path:
    """A miniature of lerobot's diffusion that fits its environment `pusht`, saved as lerobot saves one."""
    features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (16,)),
    }
    policy = tiny_diffusion(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **changes,
    )
    random = np.random.default_rng(0)
    stats = {
        key: statistics(random.uniform(0, 512, (50, *feature.shape)).astype(np.float32))
        for key, feature in {**features, "action": policy.config.action_feature}.items()
    }
    save(policy, *make_pre_post_processors(policy.config, dataset_stats=stats), folder)
    return folder


ROBOT = '''
"""A robot and its leader that lerobot finds by their names: five joints, and a camera of noise."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

JOINTS = [f"joint_{i}.pos" for i in range(5)]


@RobotConfig.register_subclass("five_joints")
@dataclass
class FiveJointsConfig(RobotConfig):
    cameras_of: int = 0


class FiveJoints(Robot):
    config_class = FiveJointsConfig
    name = "five_joints"

    def __init__(self, config):
        super().__init__(config)
        self.config, self._connected, self._at = config, False, [0.0] * 5
        self._random = np.random.default_rng(0)
        names = ("front", "wrist")[: config.cameras_of]
        self.cameras = {name: SimpleNamespace(height=48, width=64) for name in names}

    @cached_property
    def observation_features(self):
        return {**dict.fromkeys(JOINTS, float), **{name: (48, 64, 3) for name in self.cameras}}

    @cached_property
    def action_features(self):
        return dict.fromkeys(JOINTS[: int(os.environ.get("ACTED", 5))], float)

    is_connected = property(lambda self: self._connected)
    is_calibrated = True

    def connect(self, calibrate=True):
        self._connected = True

    def calibrate(self):
        pass

    configure = calibrate

    def disconnect(self):
        self._connected = False

    def get_observation(self):
        seen = {name: self._random.integers(0, 256, (48, 64, 3), np.uint8) for name in self.cameras}
        return {**dict(zip(JOINTS, self._at)), **seen}

    def send_action(self, action):
        with open(os.environ["ACTED_INTO"], "a") as told:
            told.write(json.dumps({name: float(value) for name, value in action.items()}) + chr(10))
        return action


@TeleoperatorConfig.register_subclass("five_joints_leader")
@dataclass
class FiveJointsLeaderConfig(TeleoperatorConfig):
    pass


class FiveJointsLeader(Teleoperator):
    config_class = FiveJointsLeaderConfig
    name = "five_joints_leader"

    def __init__(self, config):
        super().__init__(config)
        self.config, self._connected = config, False

    action_features = property(lambda self: dict.fromkeys(JOINTS, float))
    feedback_features = property(lambda self: {})
    is_connected = property(lambda self: self._connected)
    is_calibrated = True

    def connect(self, calibrate=True):
        self._connected = True

    def calibrate(self):
        pass

    configure = calibrate

    def disconnect(self):
        self._connected = False

    def get_action(self):
        return dict.fromkeys(JOINTS, 1.0)

    def send_feedback(self, feedback):
        pass
'''
