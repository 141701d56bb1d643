"""`lerobot-eval` of every policy that comes apart, before and after: the same rewards and successes.

Its `main` is called with one command line after the other in a process of its own, since a process takes ten
seconds to begin; `test_lerobots_commands.py` has the command itself.
"""

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import ADAPTED, checkpoint
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_commands import install_plugin, run, write_plugin
from lerobot_policies import saved
from support_table import shows

from vivace.eval.cli import main

SUPPORT = Path(__file__).parents[2] / "support"
IDENTITY = ["--calibrate=true", "--accel.techniques=[]", "--accel.samples=1", "--accel.judged_samples=1"]
WORLD = "import lerobot_policies, small_world\nlerobot_policies.know_fast()"
IN_TURN = """
import json, sys, traceback
from lerobot.scripts.lerobot_eval import main
for line in json.loads(sys.argv[1]):
    sys.argv = line
    try:
        main()
    except (Exception, SystemExit):
        traceback.print_exc()
"""
BY_PLUGIN = ("groot", "xvla")
"""Types that lerobot knows by their class: their own checkpoint is run, by the plug-in."""
WRITES_THE_SAME = ("token_vla",)
"""Types whose random weights write one chunk, whatever is seen."""
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def before_and_after(tmp_path_factory):
    """Policy type -> the folders of its two runs, and what all of them said."""
    folder = tmp_path_factory.mktemp("evaluated")
    world = write_plugin(folder, "lerobot_env_small", WORLD)
    plugins = (install_plugin(folder / "plugin"), world, SUPPORT)
    bases = {kind: of_lerobots_world(kind, folder) for kind in ADAPTED}
    lines = {}
    for kind, base in bases.items():
        after = base
        if kind not in BY_PLUGIN:
            after = folder / f"{kind}-vivace"
            assert main(["accelerate", str(base), str(after), *IDENTITY]) == 0
        lines[kind] = [command(base, folder / kind / "before"), command(after, folder / kind / "after")]
    off = [line for kind, pair in lines.items() for line in pair[: 1 if kind in BY_PLUGIN else 2]]
    on = [lines[kind][1] for kind in BY_PLUGIN]
    said = [
        run("python", "-c", IN_TURN, json.dumps(asked), plugins=plugins, cwd=folder, VIVACE=switch).stdout
        for asked, switch in ((off, "off"), (on, "on"))
    ]
    return {kind: (folder / kind / "before", folder / kind / "after") for kind in ADAPTED}, said


def command(policy, out):
    """lerobot-eval as a user types it."""
    flags = ["--env.type=small", f"--env.checkpoint={policy}", "--seed=7", "--policy.device=cpu"]
    few = ["--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false"]
    return ["lerobot-eval", f"--policy.path={policy}", *flags, *few, f"--output_dir={out}"]


def of_lerobots_world(kind, folder):
    """A checkpoint; xvla's without the steps that lerobot-eval adds, and with the rotations it reads."""
    if kind != "xvla":
        return checkpoint(kind)
    action = PolicyFeature(FeatureType.ACTION, (10,))
    copy = shutil.copytree(
        saved(kind, output_features={"action": action}, max_action_dim=10), folder / "base"
    )
    file = copy / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    twice = ("xvla_image_to_float", "xvla_imagenet_normalize")
    pipeline["steps"] = [it for it in pipeline["steps"] if it["registry_name"] not in twice]
    file.write_text(json.dumps(pipeline))
    return copy


def results(folder):
    """Rewards and successes, an episode after the other."""
    (task,) = json.loads((folder / "eval_info.json").read_text())["per_task"]
    return task["metrics"]["sum_rewards"], task["metrics"]["successes"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(it, marks=shows("lerobot-eval", it)) for it in ADAPTED if it not in BY_PLUGIN],
)
def test_the_identity_plan_acts_as_the_policy_bit_for_bit(kind, before_and_after):
    runs, said = before_and_after
    before, after = (results(folder) for folder in runs[kind])
    assert before == after, said[0][-3000:]
    assert len(set(before[0])) == 2 or kind in WRITES_THE_SAME


@pytest.mark.parametrize(
    "kind", [pytest.param(it, marks=shows("lerobot-eval", it, "by the plug-in")) for it in BY_PLUGIN]
)
def test_what_lerobot_knows_by_its_class_is_run_by_the_plugin(kind, before_and_after):
    runs, said = before_and_after
    before, after = (results(folder) for folder in runs[kind])
    assert after[0] == pytest.approx(before[0], abs=1e-2)
    assert after[1] == before[1]
    assert f"vivace: {kind} runs under exact work alone" in said[1], said[1][-3000:]
