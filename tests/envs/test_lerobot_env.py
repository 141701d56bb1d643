"""lerobot's own environments as worlds: C9, G13, G14."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.envs import make_env, preprocess_observation
from lerobot.envs.configs import EnvConfig, PushtEnv

from vivace.envs import make, task_names
from vivace.envs.lerobot_env import LerobotWorlds, lerobot_names
from vivace.envs.registry import describe, world_type
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import ActionKind, PolicySpec

pytestmark = pytest.mark.sim
SPEC = PolicySpec(
    type="diffusion", action_dim=2, horizon=8, n_obs_steps=2, n_action_steps=4, blocks=(),
    observation_shapes={"observation.state": (2,), "observation.image": (3, 96, 96)},
    action_kinds=(ActionKind.ABSOLUTE,) * 2,
)  # fmt: skip


def episode(world, seed, steps=25):
    """Observations and scores of an episode whose actions its seed decides."""
    random = np.random.default_rng(seed)
    seen, scores = [world.reset(seed=seed)[0]], []
    for _ in range(steps):
        values, *_, info = world.step(random.uniform(100, 400, 2).astype(np.float32))
        seen.append(values)
        scores.append(info["score"])
    return seen, scores


def test_c9_pusht_is_lerobots_own_step_for_step():
    """Same pictures, states, rewards and coverage as what `lerobot-eval` steps, which sees pictures / 255."""
    world = make("pusht", spec=SPEC)
    (vector,) = make_env(PushtEnv())["pusht"].values()
    theirs = preprocess_observation(vector.reset(seed=[7])[0])
    ours, _ = world.reset(seed=7)
    assert world.initial_action == tuple(ours["observation.state"].tolist()), "the finger stays where it is"
    random = np.random.default_rng(0)
    for _ in range(20):
        assert set(ours) == set(theirs) == {"observation.image", "observation.state"}
        picture = theirs["observation.image"][0].permute(1, 2, 0).numpy()
        assert ours["observation.image"].dtype == np.uint8
        np.testing.assert_array_equal(ours["observation.image"].astype(np.float32) / np.float32(255), picture)
        np.testing.assert_array_equal(ours["observation.state"], theirs["observation.state"][0].numpy())
        action = random.uniform(100, 400, 2).astype(np.float32)
        ours, reward, _, _, info = world.step(action)
        seen, rewards, *_, infos = vector.step(action[None])
        theirs = preprocess_observation(seen)
        assert (reward, info["score"]) == (rewards[0], infos["coverage"][0])
    vector.close()
    world.close()


@pytest.mark.parametrize(("env_type", "task", "spec"), [("pusht", "", SPEC)])
def test_an_episode_is_what_its_seed_and_its_actions_make_of_it(env_type, task, spec):
    world = make(env_type, task, spec=spec)
    first, scores = episode(world, 5)
    episode(world, 6, steps=10)
    again, scores_again = episode(world, 5)
    world.close()
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[key], two[key]) for key in one)
    assert scores == scores_again
    assert not np.array_equal(first[0]["observation.state"], again[-1]["observation.state"])


def test_what_it_says_of_itself():
    known = describe("pusht")
    assert (known.control_hz, known.action_dim, known.action_kinds) == (10.0, 2, (ActionKind.ABSOLUTE,) * 2)
    assert set(make("pusht").reset(seed=0)[0]) <= set(known.observations)
    assert task_names("pusht") == ("PushT-v0",)
    assert make("pusht").max_episode_steps == 300
    shorter = make("pusht", episode_length=3)
    shorter.reset(seed=0)
    assert [shorter.step(np.zeros(2, np.float32))[3] for _ in range(3)] == [False, False, True]
    state = make("pusht", obs_type="environment_state_agent_pos").reset(seed=0)[0]
    assert {key: value.shape for key, value in state.items()} == {
        "observation.environment_state": (16,), "observation.state": (2,),
    }  # fmt: skip


BAD = [
    ({"fps": 20}, "20 Hz were asked for, but a step of lerobot's pusht is 1/10 s"),
    ({"control_hz": 25.0}, "25 Hz were asked for, but a step of lerobot's pusht is 1/10 s"),
    ({"observation_height": 48}, "gives pictures of 96 px whatever observation_height says"),
    ({"obs_type": "touch"}, "lerobot cannot make 'pusht'.*Unknown obs_type touch"),
    ({"wheels": 3}, "lerobot's pusht cannot be made so: .*'wheels'"),
    ({"task": "PushX-v9"}, "lerobot cannot make 'pusht' with task 'PushX-v9'"),
    ({"initial_action": [1.0]}, "--env.initial_action has 1 numbers; 2 are needed"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_lerobot_does_not_pass_on_or_cannot_make_is_one_line(options, message):
    with pytest.raises(BadSetting, match=message) as told:
        make("pusht", options.pop("task", ""), spec=SPEC, **options).reset(seed=0)
    assert "\n" not in str(told.value)


def test_an_observation_without_names_is_refused():
    with pytest.raises(BadSetting, match="there is but an array; take another --env.obs_type"):
        make("pusht", obs_type="state").reset(seed=0)


@pytest.mark.parametrize(
    ("env_type", "package"), [("aloha", "lerobot\\[aloha\\]"), ("libero", "lerobot\\[libero\\]")]
)
def test_c9_a_package_that_is_missing_is_named_and_how_to_install_it(env_type, package, monkeypatch):
    def missing(self, n_envs, use_async_envs=False):
        raise ModuleNotFoundError("no package")

    monkeypatch.setattr(EnvConfig.get_choice_class(env_type), "create_envs", missing)
    with pytest.raises(
        BadSetting, match=f"'{env_type}' is lerobot's and needs a package.*pip install '{package}"
    ):
        make(env_type)


def test_c9_a_package_that_asks_a_question_is_refused_with_it(monkeypatch):
    """LIBERO's import asks one where it is not set up; unseen, it would wait for ever."""

    def asking(self, n_envs, use_async_envs=False):
        input("Do you want a folder? (Y/N): ")

    monkeypatch.setattr(EnvConfig.get_choice_class("libero"), "create_envs", asking)
    monkeypatch.setattr("sys.stdin", answers := io.StringIO("n\n"))
    with pytest.raises(
        BadSetting, match=r"'libero' asks a question first: Do you want a folder\? \(Y/N\):.*LIBERO_CONFIG"
    ) as told:
        make("libero")
    assert "\n" not in str(told.value)
    assert answers.read() == "n\n", "nothing was answered for its user"


def test_every_type_of_lerobots_is_there_and_its_metaworld_has_a_name_of_its_own():
    names = lerobot_names()
    assert {"pusht", "aloha", "libero", "robocasa", "lerobot_metaworld"} <= set(names)
    assert "metaworld" not in names
    for name in names:
        assert world_type(name).task_names() is not None
        world_type(name).Options()


def test_g14_a_checkpoint_of_one_metaworld_is_not_judged_in_the_other():
    kinds = (ActionKind.DELTA,) * 3 + (ActionKind.ABSOLUTE,)
    shapes = {"observation.state": (4,), "observation.image": (3, 480, 480)}
    theirs = replace(SPEC, action_dim=4, action_kinds=kinds, observation_shapes=shapes)
    ours = replace(theirs, observation_shapes={"observation.state": (39,)})
    with pytest.raises(UnknownEnvironment, match="feels 4 numbers.*--env.type=lerobot_metaworld"):
        make("metaworld", "reach-v3", spec=theirs)
    with pytest.raises(UnknownEnvironment, match="feels 39 numbers, those of --env.type=metaworld"):
        make("lerobot_metaworld", "reach-v3", spec=ours)
    known = describe("lerobot_metaworld", "reach-v3")
    assert (known.control_hz, known.action_kinds, known.instruction) == (80.0, kinds, "Reach a goal position")


class Rows:
    """Stands for LIBERO's environment: initial states in a list, counted up by resets."""

    metadata = {}
    control_freq = 20

    def __init__(self):
        self.init_state_id, self.unwrapped = 0, self

    def reset(self, seed=None):
        self.picked = self.init_state_id
        self.init_state_id += 1
        return {"agent_pos": np.zeros(2)}, {}


def test_the_seed_picks_an_initial_state():
    from vivace.envs.lerobot_env import LerobotWorld

    env = Rows()
    world = LerobotWorld(env, lambda seen: {}, lambda action: action, control_hz=20.0, max_episode_steps=9)
    for seed in (4, 9, 4):
        world.reset(seed=seed)
        assert env.picked == seed


def test_liberos_processors_turn_and_join_what_it_gives():
    """Through lerobot's own `LiberoProcessorStep`: pictures turned by 180 degrees, eight numbers of state."""
    from vivace.envs.lerobot_env import _processors

    config = EnvConfig.get_choice_class("libero")()
    read, write = _processors(config, None, "stack")
    picture = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    state = {
        "eef": {"pos": np.arange(3.0), "quat": np.array([0.0, 0.0, 0.0, 1.0]), "mat": np.eye(3)},
        "gripper": {"qpos": np.array([7.0, 8.0]), "qvel": np.zeros(2)},
        "joints": {"pos": np.zeros(7), "vel": np.zeros(7)},
    }
    seen = read({"pixels": {"image": picture}, "robot_state": state})
    np.testing.assert_array_equal(seen["observation.images.image"], picture[::-1, ::-1])
    np.testing.assert_array_equal(seen["observation.state"], [0, 1, 2, 0, 0, 0, 7, 8])
    np.testing.assert_array_equal(write(np.arange(7, dtype=np.float32)), np.arange(7))


def test_a_policy_that_lerobot_judges_by_processors_of_its_own_is_refused():
    """xvla's make other numbers of pictures, which would have come out as pictures again, silently wrong."""
    import lerobot.policies  # noqa: F401  registers the types

    from vivace.envs.lerobot_env import _processors

    with pytest.raises(BadSetting, match="type 'xvla' with processors of their own .*XVLAImageNetNormalize"):
        _processors(EnvConfig.get_choice_class("libero")(), replace(SPEC, type="xvla"), "stack")
    _processors(EnvConfig.get_choice_class("libero")(), replace(SPEC, type="act"), "stack")


def test_a_plug_in_of_lerobots_is_a_type_too():
    """What an installed lerobot_env_* package registers; it is registered by its import."""

    @EnvConfig.register_subclass("lunch")
    class Lunch(PushtEnv):
        @property
        def gym_id(self):
            return "gym_pusht/PushT-v0"

    try:
        assert "lunch" in lerobot_names()
        world = LerobotWorlds("lunch")
        assert world.describe("PushT-v0").action_kinds == (), "nobody said"
        with pytest.raises(BadSetting, match="nobody says what to hold before the first action"):
            world.make(
                "PushT-v0", spec=replace(SPEC, action_dim=1, action_kinds=(ActionKind.ABSOLUTE,))
            ).reset(seed=0)
    finally:
        EnvConfig._choice_registry.pop("lunch")


@pytest.mark.simulators
@pytest.mark.parametrize(("env_type", "task", "options"), [
    ("aloha", "AlohaInsertion-v0", {}),
    ("libero", "libero_object", {"task_ids": [0], "observation_height": 128, "observation_width": 128}),
    ("lerobot_metaworld", "reach-v3", {}),
])  # fmt: skip
def test_a_heavier_world_runs_and_repeats_itself(env_type, task, options):
    pytest.importorskip({"aloha": "gym_aloha", "libero": "libero"}.get(env_type, "metaworld"))
    known = describe(env_type, task, **options)
    shapes = {"observation.state": (known.action_dim,)}
    spec = replace(
        SPEC, action_dim=known.action_dim, action_kinds=known.action_kinds, observation_shapes=shapes
    )
    world = make(env_type, task, spec=spec, **options)
    runs = []
    for seed in (1, 2, 1):
        seen, _ = world.reset(seed=seed)
        for _ in range(5):
            seen, *_, info = world.step(np.zeros(known.action_dim, np.float32))
        runs.append(seen)
    world.close()
    assert "is_success" in info
    assert all(np.array_equal(runs[0][key], runs[2][key]) for key in runs[0])


@pytest.mark.long
@pytest.mark.simulators
@pytest.mark.parametrize(("env_type", "task", "options", "seed"), [
    ("aloha", "AlohaInsertion-v0", {}, 7),
    ("libero", "libero_object", {"task_ids": [0], "observation_height": 128, "observation_width": 128}, 0),
    ("lerobot_metaworld", "reach-v3", {}, 7),
])  # fmt: skip
def test_a_heavier_world_is_lerobots_own_step_for_step(env_type, task, options, seed):
    """Action for action, observation for observation against the vector that `lerobot-eval` steps.

    LIBERO's picks initial states by counting resets, so its first episode is that of seed 0.
    """
    pytest.importorskip({"aloha": "gym_aloha", "libero": "libero"}.get(env_type, "metaworld"))
    world = make(env_type, task, **options)
    config = EnvConfig.get_choice_class(env_type.removeprefix("lerobot_"))(task=task, **options)
    (vector,) = next(iter(make_env(config).values())).values()
    before, after = config.get_env_processors()

    def theirs_of(seen):
        return before(preprocess_observation(seen) | {"task": [""]})

    theirs, (ours, _) = theirs_of(vector.reset(seed=[seed])[0]), world.reset(seed=seed)
    random = np.random.default_rng(0)
    for _ in range(4):
        assert set(ours) == {key for key in theirs if key.startswith("observation.")}
        for key, mine in ours.items():
            wanted = theirs[key][0].numpy()
            if "image" in key:
                mine, wanted = mine.astype(np.float32) / np.float32(255), np.moveaxis(wanted, 0, -1)
            np.testing.assert_array_equal(mine, wanted)
        action = random.uniform(-1, 1, vector.single_action_space.shape).astype(np.float32)
        told = after({"action": torch.from_numpy(action)[None]})["action"].numpy()
        ours, reward, ended, _, info = world.step(action)
        seen, rewards, ends, _, infos = vector.step(told)
        theirs = theirs_of(seen)
        assert (reward, ended) == (rewards[0], ends[0])
        assert bool(info["is_success"]) == bool(infos["is_success"][0])
    vector.close()
    world.close()
