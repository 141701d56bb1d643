"""Episodes in virtual time: like a frozen world without latency, whatever the batch, order or break."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from loop_options import part

from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.settings import Mode
from vivace.deploy.workers.worker import BatchedInference, Request, SimulatedWorker
from vivace.eval.simulation.env_robot import EnvRobot
from vivace.eval.simulation.episode import EpisodeResult, append_result, load_results
from vivace.eval.simulation.latency_model import ConstantLatency, MeasuredLatency, ProfileLatency
from vivace.eval.simulation.rollout import RolloutSettings, RungRun, rollout
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import ActionKind, PolicySpec

KEY = "observation.state"
SPEC = PolicySpec(
    type="fake",
    action_dim=2,
    horizon=9,
    n_obs_steps=2,
    n_action_steps=4,
    observation_shapes={KEY: (2,)},
    action_kinds=(ActionKind.ABSOLUTE, ActionKind.VELOCITY),
    blocks=(),
)


def settings_of(**options):
    loop, others = part(options)
    return RolloutSettings(loop=loop, **others)


class Drift(gymnasium.Env):
    """Its state depends on every action so far; it ends after a number of steps that the seed decides."""

    control_hz = 20.0

    def reset(self, *, seed=None, options=None):
        rng = np.random.default_rng(seed)
        self.state, self.left = rng.normal(size=2), rng.integers(9, 25)
        return {KEY: self.state}, {}

    def step(self, action):
        self.state += 0.3 * np.sin(3 * self.state) + 0.2 * action  # in place, as some simulators do
        self.left -= 1
        success = bool(self.state[0] > 1.5)
        return {KEY: self.state}, 0.0, False, self.left == 0, {"is_success": success}


def stack_actions(result):
    """Return the executed actions of an episode (steps, A)."""
    return np.stack([record.action for record in result.records])


def predict(observations, keys):
    """Return eight actions that depend on both observations and on the noise key."""
    noise = np.stack([np.random.default_rng(key).normal(size=(8, 2)) for key in keys])
    seen = observations[KEY][:, 1] - 0.5 * observations[KEY][:, 0]
    return (np.tanh(seen)[:, None] + noise).astype(np.float32)


def frozen_world(seed):
    """Run the textbook loop: predict, execute four actions, predict again; the world waits."""
    env, actions, success = Drift(), [], False
    state = env.reset(seed=seed)[0][KEY].copy()
    before, is_over = state, False
    while not is_over:
        chunk = predict({KEY: np.stack([before, state])[None]}, [(seed, len(actions))])[0]
        for action in chunk[:4]:
            actions.append(action)
            before = state
            values, _, _, truncated, info = env.step(action)
            state, success = values[KEY].copy(), info["is_success"]
            is_over = truncated or success
            if is_over:
                break
    return np.stack(actions), success


def run(done=(), on_episode=lambda result: None, **options):
    return rollout(Drift, predict, SPEC, settings_of(**options), on_episode, done)


def assert_equal(found, expected):
    assert found == expected
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(stack_actions(one), stack_actions(other))


CASES = [
    {"mode": Mode.SYNC},
    {"mode": Mode.SYNC, "latency": ConstantLatency(seconds=0.12)},
    {"mode": Mode.ASYNC, "latency": ProfileLatency(p50_s=0.08, p99_s=0.4), "blend_ticks": 2},
]
NAMES = ["frozen", "sync", "async"]


def test_sync_without_latency_equals_a_frozen_world():
    results = run(n_episodes=12, batch_size=5)
    assert {result.success for result in results} == {True, False}
    for result in results:
        actions, success = frozen_world(result.seed)
        assert np.array_equal(stack_actions(result), actions)
        assert (result.success, result.steps) == (success, len(actions))
        assert result.timeline == "c" * len(actions)
        assert result.request_ticks == tuple(range(0, len(actions), 4))
        assert result.time_to_success_s == (len(actions) / 20 if success else None)
        assert (result.fresh_share, result.deadline_misses, result.interventions) == (1, 0, 0)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_results_do_not_depend_on_batch_size_or_order(case):
    expected = run(n_episodes=7, batch_size=1, **case)
    assert [result.seed for result in expected] == list(range(100_000, 100_007))
    for batch_size in (3, 7):
        assert_equal(run(n_episodes=7, batch_size=batch_size, **case), expected)
    backward = [run(n_episodes=1, seed=100_000 + i, **case)[0] for i in reversed(range(7))]
    assert_equal(backward[::-1], expected)


def test_chunks_that_follow_none_take_their_own_time():
    """The first of an episode, and one after a chunk that came late, are sampled in full by a warm start."""
    quick = MeasuredLatency(samples_s=(0.05,), first_s=(0.1,))
    for result in run(n_episodes=3, latency=quick):
        assert result.latencies_s == (0.1, *[0.05] * (len(result.latencies_s) - 1))
    # two ticks of latency, asked for when one fresh action is left: every chunk but the first is late
    late = MeasuredLatency(samples_s=(0.1,), first_s=(0.11,))
    for result in run(n_episodes=3, latency=late, mode=Mode.ASYNC, request_at=1):
        n = len(result.latencies_s)
        assert n > 2
        assert result.latencies_s == (0.11, 0.1, *[0.11] * (n - 2))


def test_a_plan_of_a_ladder_does_not_follow_another():
    fast, slow = (MeasuredLatency(samples_s=(t,), first_s=(2 * t,)) for t in (0.04, 0.06))
    inference = BatchedInference(predict, {"slow": predict, "fast": predict})
    models = {"slow": slow, "fast": fast}

    def latency_s(n, request):
        model = models[request.plan]
        return (model if request.followed else model.first).latency_s(0, n)

    worker, now = SimulatedWorker(inference, latency_s), 0.0
    plans = ("slow", "slow", "fast", "fast", "slow")
    for tick, plan in enumerate(plans):
        seen = {KEY: np.zeros((2, 2), np.float32)}
        worker.submit(Request(seen, tick, now, (0, tick), plan, followed=(tick - 1, 1) if tick else None))
        now += 1.0
        assert worker.poll(now) is not None
    assert [latency_s for _, latency_s in worker.asked] == [0.12, 0.06, 0.08, 0.04, 0.12]


def test_another_seed_is_another_episode():
    first, second = run(n_episodes=2)
    assert not np.array_equal(stack_actions(first)[:4], stack_actions(second)[:4])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_an_interrupted_run_continues_to_equal_results(case, tmp_path):
    expected, path, stored = run(n_episodes=7, batch_size=3, **case), tmp_path / "episodes.jsonl", []

    def store(result):
        append_result(path, result)
        stored.append(result.seed)
        if len(stored) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(n_episodes=7, batch_size=3, on_episode=store, **case)
    done = load_results(path)
    assert [result.seed for result in done] == stored
    again = []
    found = run(n_episodes=7, batch_size=2, done=done, on_episode=again.append, **case)
    assert found == expected
    assert sorted(result.seed for result in again) == sorted(set(range(100_000, 100_007)) - set(stored))


def test_nothing_is_left_to_do():
    done = run(n_episodes=3)

    def refuse():
        raise AssertionError("no environment is needed")

    assert rollout(refuse, predict, SPEC, RolloutSettings(n_episodes=3), done=done) == done


@pytest.mark.parametrize(
    ("options", "timeline", "asked", "misses"),
    [
        ({"latency": ConstantLatency(seconds=0.1)}, "ffccssffcc", (0, 6), 0),
        ({"latency": ConstantLatency(seconds=0.11)}, "fffcsssfff", (0, 7), 0),
        ({"latency": ConstantLatency(seconds=0.05), "n_action_steps": 2}, "fcsfcsfcsf", (0, 3, 6, 9), 0),
        ({"latency": ConstantLatency(seconds=0.1), "mode": Mode.ASYNC}, "ffcccccccc", (0, 2, 4, 6, 8), 1),
        (
            {"latency": ConstantLatency(seconds=0.1), "mode": Mode.ASYNC, "request_at": 0},
            "ffccssccss",
            (0, 4, 8),
            3,
        ),
        (  # there at age 6, hence stale at once; it begins with its first action, since the robot has stood
            {"latency": ConstantLatency(seconds=0.3), "mode": Mode.ASYNC, "request_at": 0},
            "ffffffssss",
            (0, 6),
            2,
        ),
        ({"latency": ConstantLatency(seconds=9.0), "mode": Mode.ASYNC}, "ffffffffff", (0,), 1),
    ],
)
def test_timelines_under_constant_latency(options, timeline, asked, misses):
    class Endless(Drift):
        def step(self, action):
            values, *_ = super().step(action)
            return values, 0.0, False, False, {"is_success": False}

    settings = settings_of(n_episodes=3, max_steps=10, batch_size=2, **options)
    for result in rollout(Endless, predict, SPEC, settings):
        assert (result.timeline, result.request_ticks, result.deadline_misses) == (timeline, asked, misses)
        assert result.ticks == {name: timeline.count(name[0]) for name in ("chunk", "stale", "fallback")}
        assert result.latencies_s == (settings.latency.seconds,) * len(asked)
        assert (result.steps, result.success, result.time_to_success_s) == (10, False, None)
        assert result.fresh_share == timeline.count("c") / 10


def test_a_request_is_computed_only_if_its_episode_lives_to_use_it():
    computed = []

    def note(observations, keys):
        computed.extend(keys)
        return predict(observations, keys)

    settings = RolloutSettings(n_episodes=8, batch_size=8, latency=ConstantLatency(seconds=0.4))
    results = rollout(Drift, note, SPEC, settings)
    asked = [(result.seed, tick, result.steps) for result in results for tick in result.request_ticks]
    assert sorted(computed) == [(seed, tick) for seed, tick, steps in asked if tick + 8 < steps]
    assert 8 < len(computed) < len(asked)


def test_every_tick_is_shown():
    shown, settings = [], RolloutSettings(n_episodes=3, batch_size=2)
    results = rollout(Drift, predict, SPEC, settings, on_tick=lambda *what: shown.append(what))
    for result in results:
        records = [record for seed, _, record in shown if seed == result.seed]
        assert tuple(records) == result.records
    assert all(isinstance(env, Drift) for _, env, _ in shown)


def test_limits_are_applied_and_counted():
    for result in run(n_episodes=3, limits=Limits(low=(-0.1, -0.1), high=(0.1, 0.1))):
        assert np.abs(stack_actions(result)).max() <= np.float32(0.1)
        assert result.interventions > 0


def test_environments_are_closed_even_after_an_error():
    closed = []

    class Door(Drift):
        def close(self):
            closed.append(self)

    def fail(observations, keys):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        rollout(Door, fail, SPEC, RolloutSettings(n_episodes=5, batch_size=3))
    assert len(closed) == 3


def test_environments_that_do_not_speak_lerobot_are_refused():
    class Silent(Drift):
        def step(self, action):
            return *super().step(action)[:4], {"solved": True}

    class Bare(Drift):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0][KEY], {}

    with pytest.raises(
        UnknownEnvironment, match="info has keys solved, and 'is_success' at no step of an episode"
    ):
        rollout(Silent, predict, SPEC, RolloutSettings(n_episodes=1))
    with pytest.raises(UnknownEnvironment, match="observation is a ndarray"):
        rollout(Bare, predict, SPEC, RolloutSettings(n_episodes=1))


def test_a_world_is_not_run_in_slow_motion_unsaid():
    class Timeless(Drift):
        control_hz = None

    with pytest.raises(BadSetting, match=r"control_hz=50, but a step of this environment is 1/20 s"):
        rollout(Drift, predict, SPEC, RolloutSettings(n_episodes=1, control_hz=50.0))
    with pytest.raises(BadSetting, match="neither the environment nor the settings say how long a step is"):
        rollout(Timeless, predict, SPEC, RolloutSettings(n_episodes=1))
    (asked,) = rollout(Timeless, predict, SPEC, RolloutSettings(n_episodes=1, control_hz=50.0))
    (own,) = rollout(Drift, predict, SPEC, RolloutSettings(n_episodes=1))
    assert [record.beat.time_s for record in asked.records[:3]] == pytest.approx([0.0, 0.02, 0.04])
    assert [record.beat.time_s for record in own.records[:3]] == pytest.approx([0.0, 0.05, 0.1])


def test_observations_are_copies():
    robot = EnvRobot(Drift(), 20.0)
    robot.reset(3)
    first = robot.observe()
    kept = first.values[KEY].copy()
    robot.act(np.ones(2))
    second = robot.observe()
    assert np.array_equal(first.values[KEY], kept)
    assert not np.array_equal(second.values[KEY], kept)
    assert (first.tick, second.tick, second.time_s) == (0, 1, 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_episodes": 0}, "n_episodes=0; a number above 0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"control_hz": float("nan")}, "control_hz=nan"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"n_action_steps": 0}, "n_action_steps=0; at least 1"),
        ({"seed": -1}, "seed=-1; 0 or more"),
        ({"mode": "turbo"}, "'turbo' is unknown"),
        ({"n_action_steps": 9}, "n_action_steps=9, but a chunk has 8 actions; give 1..8"),
        ({"request_at": 1}, "do nothing in mode sync"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        run(**options)


def test_results_survive_json(tmp_path):
    results = run(n_episodes=6, latency=ProfileLatency(p50_s=0.08, p99_s=0.4))
    assert {result.success for result in results} == {True, False}
    for result in results:
        restored = EpisodeResult.from_json(json.loads(json.dumps(result.to_json())))
        assert restored == replace(result, records=())
        assert restored.to_json() == result.to_json()
        assert restored.fresh_share == result.fresh_share
        append_result(tmp_path / "episodes.jsonl", result)
    assert load_results(tmp_path / "episodes.jsonl") == results
    assert load_results(tmp_path / "nowhere.jsonl") == []


@pytest.mark.parametrize("kept", [0, 1, 40, -2, -1])
def test_a_last_line_that_was_cut_off_is_left_out_and_written_again(tmp_path, kept):
    path, (first, second, third) = tmp_path / "episodes.jsonl", run(n_episodes=3)
    append_result(path, first)
    whole = path.read_text()
    append_result(path, second)
    line = path.read_text()[len(whole) :]
    path.write_text(whole + line[:kept])
    is_whole = kept == -1  # only the end of the line is missing
    assert load_results(path) == [first, second][: 1 + is_whole]
    append_result(path, third)
    assert load_results(path) == [first, *[second][:is_whole], third]


@pytest.mark.parametrize("text", ['{"seed": 1}', "[1]", "7"])
def test_lines_of_another_program_are_refused(tmp_path, text):
    (tmp_path / "episodes.jsonl").write_text(text + "\n")
    with pytest.raises(BadSetting, match="an episode result has .*; needed: seed, success"):
        load_results(tmp_path / "episodes.jsonl")


def test_a_ladder_runs_the_plan_that_fits():
    plans = []

    def slow(observations, keys):
        plans.extend(["slow"] * len(keys))
        return predict(observations, keys)

    def fast(observations, keys):
        plans.extend(["fast"] * len(keys))
        return np.zeros((len(keys), 8, 2), np.float32)

    ladder = [
        RungRun(Rung("slow", 0.1), slow, ConstantLatency(seconds=0.1)),
        RungRun(Rung("fast", 0.05), fast, ConstantLatency(seconds=0.05)),
    ]
    settings = settings_of(n_episodes=3, mode=Mode.ASYNC, latency=ConstantLatency(seconds=9.0))
    results = rollout(Drift, predict, SPEC, settings, ladder=ladder)
    assert set(plans) == {"slow", "fast"}
    assert plans[:3] == ["fast"] * 3  # nothing to execute meanwhile
    for result in results:
        assert result.latencies_s[:3] == (0.05,) * 3  # a better one has to fit three times
        assert set(result.latencies_s) == {0.05, 0.1}
        assert set(result.choices) == {"slow", "fast"}
        assert sum(result.choices.values()) == len(result.latencies_s)
