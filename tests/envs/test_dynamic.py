import numpy as np
import pytest

from vivace.envs import DisturbedPush, MovingReach, expert, make

pytestmark = pytest.mark.sim
CHUNK = 8


def _success(task: str, seeds: range, delay: int) -> float:
    """Success of an expert that stands still for `delay` ticks of 50 ms before each chunk of 8 actions.

    The chunk is what the expert does from the observation at which thinking began: it is found by
    replaying the episode in a twin environment.
    """
    env, twin, act = make("metaworld", task), make("metaworld", task), expert(task)
    wins = 0
    for seed in seeds:
        env.reset(seed=seed)
        executed: list[np.ndarray] = []
        is_over = is_success = False
        while not is_over:
            observation, _ = twin.reset(seed=seed)
            for action in executed:
                observation, *_ = twin.step(action)
            plan = [np.append(np.zeros(3), executed[-1][3] if executed else 0.0)] * delay
            for _ in range(CHUNK):
                plan.append(act(observation["observation.state"]))
                observation, *_ = twin.step(plan[-1])
            for action in plan:
                _, _, _, truncated, info = env.step(action)
                executed.append(action)
                is_success = info["is_success"]
                is_over = is_success or truncated
                if is_over:
                    break
        wins += is_success
    return wins / len(seeds)


@pytest.mark.parametrize(
    ("task", "late"), [("reach-moving", 10), pytest.param("push-disturbed", 40, marks=pytest.mark.long)]
)
def test_success_falls_as_latency_grows(task, late):
    seeds = range(100_000, 100_003)
    assert _success(task, seeds, 1) == 1.0
    assert _success(task, seeds, late) == 0.0, "half a second is too late for the goal, two for the puck"


def test_goal_moves_whatever_the_robot_does():
    first, second = MovingReach(), MovingReach()
    goals = []
    for env, action in ((first, np.ones(4)), (second, -np.ones(4))):
        start, _ = env.reset(seed=3)
        states = [start["observation.state"], *(env.step(action)[0]["observation.state"] for _ in range(20))]
        goals.append(np.array(states)[:, 36:39])
    np.testing.assert_array_equal(goals[0], goals[1])
    speeds = np.linalg.norm(np.diff(goals[0], axis=0), axis=1) * first.control_hz
    slowest, fastest = MovingReach.SPEED_M_S
    assert slowest / 2 < speeds.min() < speeds.max() < 2 * fastest, "an ellipse is not run at one speed"


@pytest.mark.parametrize("make_env", [MovingReach, DisturbedPush])
def test_what_moves_is_a_matter_of_time_and_not_of_the_rate(make_env):
    slow, fast = make_env(), make_env(control_hz=80.0)
    assert slow.control_hz == 20.0
    slow.reset(seed=5), fast.reset(seed=5)
    for _ in range(20):
        slow_state = slow.step(np.array([0.0, -1.0, 1.0, -1.0]))[0]["observation.state"]
        for _ in range(4):
            fast_state = fast.step(np.array([0.0, -1.0, 1.0, -1.0]))[0]["observation.state"]
        np.testing.assert_array_equal(slow_state[:18], fast_state[:18])
        np.testing.assert_array_equal(slow_state[36:], fast_state[36:])


def test_state_tells_the_goals_velocity():
    env = MovingReach()
    env.reset(seed=1)
    before = env.step(np.zeros(4))[0]["observation.state"]
    after = env.step(np.zeros(4))[0]["observation.state"]
    np.testing.assert_array_equal(after[22:25], before[36:39])
    np.testing.assert_array_equal(after[4:7], after[36:39])
    np.testing.assert_allclose(after[36:39], env.goal(2 / 20), atol=1e-7)


def test_staying_with_the_goal_is_needed():
    env = MovingReach()
    observation, _ = env.reset(seed=2)
    act = expert("reach-moving")
    flags = []
    while not (flags and flags[-1]):
        observation, _, _, truncated, info = env.step(act(observation["observation.state"]))
        flags.append(info["is_success"])
        assert not truncated
    assert len(flags) >= MovingReach.HOLD_S * env.control_hz


def test_knocks_move_the_puck_and_leave_it_standing():
    env = DisturbedPush()
    observation, _ = env.reset(seed=4)
    start = observation["observation.state"][4:7]
    times = np.array([time_s for time_s, _ in env.knocks])
    assert DisturbedPush.FIRST_S[0] <= times[0] <= DisturbedPush.FIRST_S[1]
    assert (np.diff(times) >= DisturbedPush.PAUSE_S[0]).all()
    assert times[-1] + DisturbedPush.PAUSE_S[1] > env.episode_s, "it goes on to the end"
    while env.time_s < times[0] + 0.2:
        observation, *_ = env.step(np.array([0.0, -1.0, 1.0, -1.0]))
        moved = np.linalg.norm(observation["observation.state"][4:6] - start[:2])
        assert (moved > 1e-3) == (env.time_s > times[0])
    assert 0.03 < moved < 0.11
    assert abs(observation["observation.state"][6] - start[2]) < 0.005
