"""A robot, a worker and a clock that fail in every way we know of, on a schedule drawn from a seed."""

from collections import Counter

import numpy as np

from vivace.policies.spec import ActionKind, Chunk, Observation, PolicySpec

STATE, CAMERA = "observation.state", "observation.images.front"
KINDS = (ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY)
LOW, HIGH, STEP = -1.0, 1.0, 0.25
SPEC = PolicySpec(
    type="faulty",
    action_dim=3,
    horizon=17,
    n_obs_steps=2,
    n_action_steps=8,
    observation_shapes={STATE: (2,)},
    action_kinds=KINDS,
    blocks=(),
)


class JumpingClock:
    """Virtual time that is now and then set forth or back."""

    def __init__(self, random, rate):
        self._random, self._rate, self.time_s = random, rate, 0.0
        self.faults = Counter()

    def now(self):
        return self.time_s

    def sleep_until(self, when):
        self.time_s = max(self.time_s, when)
        if self._random.random() < self._rate:
            jump_s = self._random.choice([0.01, 0.37, 8.0, -0.4, -300.0])
            self.faults["clock forth" if jump_s > 0 else "clock back"] += 1
            self.time_s += jump_s


class FaultyRobot:
    """Freezes at times: its time stands still, or only its camera's picture does."""

    def __init__(self, clock, random, rate):
        self._clock, self._random, self._rate = clock, random, rate
        self._frozen, self._kind, self._last = 0, "", None
        self._picture = np.zeros((8, 8, 3), np.uint8)
        self.faults, self.acted = Counter(), 0
        self.before = None

    def observe(self):
        if self._frozen == 0 and self._random.random() < self._rate:
            self._frozen = int(self._random.integers(1, 120))
            self._kind = str(self._random.choice(["robot freezes", "camera freezes"]))
            self.faults[self._kind] += 1
        self._frozen = max(0, self._frozen - 1)
        if self._frozen and self._kind == "robot freezes" and self._last is not None:
            return self._last
        if not self._frozen:
            self._picture = self._random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        values = {STATE: np.array([self.acted, 1.0], np.float32), CAMERA: self._picture}
        self._last = Observation(values, self.acted, self._clock.now())
        return self._last

    def act(self, action):
        """Every action must be one that a real robot could be given."""
        assert action.shape == (3,)
        assert np.isfinite(action).all()
        assert (action >= LOW).all()
        assert (action <= HIGH).all()
        if self.before is not None:
            assert np.abs(action - self.before).max() <= STEP + 1e-6
        self.before = action.copy()
        self.acted += 1


class FaultyWorker:
    """Answers in virtual time; crashes, stalls, fails, is late, or says nonsense, as drawn."""

    STALL_S, LOAD_S = 0.8, 0.5
    KINDS = ("crash", "stall", "error", "late", "NaN", "infinite", "huge", "empty")

    def __init__(self, clock, random, rate):
        self._clock, self._random, self._rate = clock, random, rate
        self._request, self._kind, self._ready_s = None, "", 0.0
        self._loads_s = None
        self.faults = Counter()
        self.restarts = self.delivered = self.asked = 0

    @property
    def is_busy(self):
        now = self._clock.now()
        if self._loads_s is not None and not 0 <= now - self._loads_s < self.LOAD_S:
            self._loads_s = None
        return self._request is not None or self._loads_s is not None

    def submit(self, request):
        assert not self.is_busy
        assert all(np.isfinite(value).all() for value in request.observations.values())
        self._request, self._kind = request, ""
        self.asked += 1
        if self._random.random() < self._rate:
            self._kind = str(self._random.choice(self.KINDS))
            self.faults[self._kind] += 1
        latency_s = self._random.uniform(0.01, 0.1) + (self._kind == "late") * self._random.uniform(0.2, 0.7)
        self._ready_s = request.time_s + latency_s

    def poll(self, now):
        request = self._request
        if request is None:
            return None
        waits_s = now - request.time_s
        if self._kind == "crash" or waits_s > self.STALL_S or waits_s < 0:  # a clock set back: given up too
            self.restarts += 1
            self._request, self._loads_s = None, now
            return None
        if self._kind == "stall" or now < self._ready_s:
            return None
        self._request = None
        if self._kind == "error":
            return None
        self.delivered += 1
        return Chunk(self._actions(), request.tick, self._ready_s)

    def _actions(self):
        n = 0 if self._kind == "empty" else SPEC.horizon - SPEC.first_action
        actions = self._random.uniform(-1.5, 1.5, (n, 3)).astype(np.float32)
        wrong = {"NaN": np.nan, "infinite": np.inf, "huge": 1e30}
        if self._kind in wrong:
            actions[self._random.integers(0, 8) :, self._random.integers(3)] = wrong[self._kind]
        return actions
