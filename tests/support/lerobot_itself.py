"""What lerobot does alone: its loader, processors and loop, to compare with; and noise, the same for all."""

from pathlib import Path

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot_policies import TASK

from vivace.policies import session as sessions
from vivace.policies.session import Session


def _randn(*size, generator=None, dtype=None, device=None, **other):
    shape = other.get("size") or (size[0] if size and not isinstance(size[0], int) else size)
    return REAL_RANDN(tuple(shape)[1:], generator=torch.Generator().manual_seed(3)).expand(*shape).clone()


REAL_RANDN, REAL_RAND = torch.randn, torch.rand


def _rand(*size, generator=None, dtype=None, device=None, **other):
    if generator is not None:
        return REAL_RAND(*size, generator=generator, dtype=dtype, device=device)
    return REAL_RAND(tuple(size)[1:], generator=torch.Generator().manual_seed(5)).expand(*size).clone()


def _normal(mean, std, size=None, **other):
    if size is not None:
        return mean + std * _randn(*size)
    return mean + std * _randn(*torch.as_tensor(mean).shape)


class SameNoise:
    """Stands for an episode's noise."""

    def __init__(self, keys):
        self.keys = keys

    def __call__(self, shape, like):
        return _randn(*shape).to(like)


def draw_alike(monkeypatch):
    """Replace what lerobot's policies and a session draw by."""
    monkeypatch.setattr(torch, "randn", _randn)
    monkeypatch.setattr(torch, "rand", _rand)
    monkeypatch.setattr(torch, "normal", _normal)
    monkeypatch.setattr(torch, "multinomial", lambda probs, num_samples: probs.topk(num_samples).indices)
    normal = torch.distributions.multivariate_normal
    monkeypatch.setattr(normal, "_standard_normal", lambda shape, dtype, device: _randn(*shape))
    monkeypatch.setattr(sessions, "EpisodeNoise", SameNoise)


def check_own() -> None:
    """Nobody left our plug-in installed in this process: what lerobot loads is lerobot's own."""
    assert not hasattr(PreTrainedPolicy.from_pretrained, "__wrapped__")


class LeRobot:
    """A checkpoint loaded and run by lerobot alone."""

    def __init__(self, checkpoint: Path, rename_map: dict[str, str] | None = None):
        check_own()
        config = PreTrainedConfig.from_pretrained(checkpoint)
        self.policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config).eval()
        overrides = {"rename_observations_processor": {"rename_map": rename_map}} if rename_map else {}
        self.pre, self.post = make_pre_post_processors(
            config, str(checkpoint), preprocessor_overrides=overrides
        )

    def ready(self, moment: dict[str, np.ndarray], task: str, **more: torch.Tensor) -> dict:
        """What the policy is given of one moment, key -> (B, ...) in its units, and of more."""
        cameras = {
            key.removeprefix("observation.images."): it for key, it in moment.items() if "image" in key
        }
        given = {"pixels": cameras.get("observation.image", cameras)} if cameras else {}
        names = {"observation.state": "agent_pos", "observation.environment_state": "environment_state"}
        given |= {names[key]: value for key, value in moment.items() if key in names}
        rows = len(next(iter(moment.values())))
        return self.pre(preprocess_observation(given) | {"task": [task] * rows} | more)

    def chunk(self, moment: dict[str, np.ndarray], task: str = TASK) -> np.ndarray:
        """Chunk (B, n, A) of one moment, brought back as a whole, as lerobot's policy server does."""
        with torch.inference_mode():
            return self.post(self.policy.predict_action_chunk(self.ready(moment, task))).numpy()

    def executed(self, moments: list[dict[str, np.ndarray]], n: int, task: str = TASK) -> np.ndarray:
        """The first n actions (B, n, A) that lerobot's own loop executes after these moments."""
        self.policy.reset()
        with torch.inference_mode():
            for moment in moments[:-1]:
                self.policy.select_action(self.ready(moment, task))
                self.queue.clear()
            newest = [self.policy.select_action(self.ready(moments[-1], task)) for _ in range(n)]
        return torch.stack([self.post(action) for action in newest], dim=1).numpy()

    @property
    def queue(self):
        """Actions that wait in lerobot's own loop."""
        own = getattr(self.policy, "_action_queue", None)
        return self.policy._queues["action"] if own is None else own


def moments(spec, rows: int = 1) -> list[dict[str, np.ndarray]]:
    """Observations of the last time steps, key -> (B, ...), as a robot gives them."""
    random = np.random.default_rng(5)
    return [
        {
            key: random.integers(0, 256, (rows, *shape[1:], shape[0]), np.uint8)
            if "image" in key
            else random.uniform(0, 6, (rows, *shape)).astype(np.float32)
            for key, shape in spec.observation_shapes.items()
        }
        for _ in range(spec.n_obs_steps)
    ]


def ours(session: Session, seen: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Chunk (B, n, A) of a session."""
    rows = len(next(iter(seen[0].values())))
    stacked = {key: np.stack([moment[key] for moment in seen], axis=1) for key in seen[0]}
    return session.predict(stacked, [(i, 0) for i in range(rows)])
