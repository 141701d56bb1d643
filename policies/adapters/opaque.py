"""A lerobot policy without an adapter, as one opaque piece: it runs, but has no blocks to accelerate.

Its chunk is what its own loop would execute. Most policies say that by `predict_action_chunk`. One that
keeps its observations itself, or has no chunks, is asked as lerobot's loop asks it: it is reset and shown
the history by `select_action`; what it has put into its queue is the chunk, one action without a queue.

Every row is run alone, on a policy that was reset, under a seed made of the row's own noise, so the same
noise key gives the same chunk, whatever was run before or is beside it. A policy that takes its starting
noise by `noise=` is given the row's, so that its chunk is lerobot's own of that noise.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, Self

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.batch import Batch, take
from vivace.policies.block import Runner, compute
from vivace.policies.dtype import cast
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.forms import DenoisingForm
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.placement import Placement
from vivace.policies.sampling.noise import seeded
from vivace.policies.sampling.real_time_chunking import NO_DENOISING, Continuation, RealTimeChunking
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN
from vivace.policies.sampling.spacing import Spacing
from vivace.policies.spec import ActionKind, PolicySpec

_REFUSED: Mapping[str, tuple[tuple[Callable[[Any], bool], str], ...]] = {
    "tdmpc": (
        (
            lambda config: bool(config.use_mpc),
            "keeps something from chunk to chunk: its planner starts from the plan before; with "
            "use_mpc=false in config.json it acts by its policy alone",
        ),
        (
            lambda config: not set(config.image_features) <= {OBS_IMAGE},
            f"reads one camera as {OBS_IMAGE} alone, in lerobot too; rename the feature in config.json",
        ),
    ),
    "lingbot_va": (
        (
            lambda config: True,
            "keeps something from chunk to chunk: what was seen and done since the one before is read into "
            "its memory; run it by lerobot",
        ),
    ),
    **dict.fromkeys(
        ("fastwam", "molmoact2", "wall_x"),
        ((lambda config: True, "is not proven equal to lerobot: it is not made small; run it by lerobot"),),
    ),
}
"""Type -> what its config may ask for that cannot be had row by row, and why."""


class OpaquePolicy(DenoisingForm):
    """Asks the policy as its own loop does, row by row.

    Raises:
        UnsupportedPolicy: it takes several observations without keeping them itself, or a chunk needs what an
            earlier one left.
    """

    blocks = ()
    selects: bool
    """It is asked by its own `select_action`, not by `predict_action_chunk`."""
    takes_noise: bool
    """It is given its starting noise, so that its chunk is lerobot's own of that noise."""

    def __init__(self, policy: Any, action_kinds: tuple[ActionKind, ...] = ()):
        config = policy.config
        check_alone(config)
        self.policy = policy.eval()
        policy.reset()
        self.selects = _keeps_observations(policy) or config.action_delta_indices is None
        n_obs_steps = getattr(config, "n_obs_steps", 1)
        if n_obs_steps != 1 and not self.selects:
            raise UnsupportedPolicy(
                f"policy {config.type!r} has no adapter and takes {n_obs_steps} observations at once, which "
                "it does not keep itself; only policies of one observation run as an opaque block"
            )
        self._call: Callable[..., Tensor] = policy.predict_action_chunk
        self.takes_noise = not self.selects and _takes(policy, "noise")
        self._follow: Continuation | None = None
        executed = _executed(policy)
        length = executed if self.selects else len(config.action_delta_indices)
        action_dim = config.action_feature.shape[0]
        self.sampler = Sampler(
            "whole", (Step(0, torch.tensor(0), lambda x, out, memory, noise: (out, memory)),)
        )
        self.spec = PolicySpec(
            type=config.type,
            action_dim=action_dim,
            horizon=n_obs_steps - 1 + length,
            n_obs_steps=n_obs_steps,
            n_action_steps=min(executed, length),
            observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
            action_kinds=kinds_of_config(config, action_kinds, action_dim),
            blocks=(),
            latent_dim=getattr(config, "max_action_dim", None) if self.takes_noise else None,
        )

    @cached_property
    def placement(self) -> Placement:
        """Where it computes; in what, if all its weights agree: one that mixes dtypes is given float32."""
        found = Placement.of(self.policy)
        dtypes = {p.dtype for p in self.policy.parameters() if p.is_floating_point()}
        return found if len(dtypes) < 2 else Placement(found.device)

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Batch:
        """What the policy is given: (B, ...), or, of one that keeps its observations, (B, To, ...)."""
        if self.spec.n_obs_steps > 1:
            return batch
        own = self.policy.config.input_features
        return {key: value[:, 0] if key in own else value for key, value in batch.items()}

    def condition(self, step: Step, context: Batch) -> Batch:
        """Nothing to prepare."""
        return context

    def denoise(self, x: Tensor, condition: Batch, run: Runner = compute) -> Tensor:
        """Predict actions (B, H, A); x is the noise of each row, and what seeds it."""
        return torch.cat([self._alone(x, i, condition) for i in range(len(x))])

    def finish(self, x: Tensor, context: Batch) -> Tensor:
        """Return x as it is: wider than the robot's actions it is cut by the checkpoint's postprocessor."""
        return x

    def _alone(self, x: Tensor, i: int, condition: Batch) -> Tensor:
        """The chunk (1, H, A) of one row."""
        with _seeded(x[i]):
            return self.chunk(take(condition, [i]), x[i : i + 1], i)

    def chunk(self, one: Batch, noise: Tensor | None = None, row: int = 0) -> Tensor:
        """Ask the policy for one chunk (1, H, A).

        Args:
            one: what it is given, one row.
            noise: its starting noise, of a policy that takes that.
            row: which row of what chunks continue.

        Raises:
            UnsupportedPolicy: the chunk is of another size than the config says.
        """
        self.policy.reset()
        one = cast(one, self.placement.dtype)
        one = {key: value.clone() if isinstance(value, Tensor) else value for key, value in one.items()}
        options = {"noise": noise} if self.takes_noise else {}
        if self.selects:
            return self._whole(_selected(self.policy, one, self.spec))
        with self._continuing(row) as more:
            return self._whole(self._call(one, **options, **more))

    def _whole(self, actions: Tensor) -> Tensor:
        """Actions (1, n, A) as a chunk: nothing is predicted for observations before the newest one."""
        spec = self.spec
        first, n = spec.first_action, actions.shape[1]
        if actions.shape[-1] < spec.action_dim or n < spec.n_action_steps:  # wider ones its processors cut
            raise UnsupportedPolicy(
                f"policy {spec.type!r} gave {n} actions of {actions.shape[-1]} numbers; its config.json says "
                f"{spec.n_action_steps} or more of {spec.action_dim}; mend output_features or n_action_steps"
            )
        actions = actions[:, : spec.horizon - first]
        missing = spec.horizon - first - actions.shape[1]
        before, after = actions[:, :1].repeat(1, first, 1), actions[:, -1:].repeat(1, missing, 1)
        return torch.cat([before, actions, after], 1)

    @torch.no_grad()
    def draws(self, batch: Batch) -> bool:
        """Whether a chunk depends on noise: on what the policy is given, or on torch's generator."""
        one = take(self.encode(batch), [0])
        with _seeded(torch.zeros(1, device=self.placement.device)):
            before = self._generators()
            self.chunk(one)
            moved = not all(map(torch.equal, before, self._generators()))
        return self.takes_noise or moved

    def _generators(self) -> list[Tensor]:
        """State of torch's generators that a chunk may draw from: the host's, and the device's own."""
        device = self.placement.device
        own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.random.get_rng_state(), *own]

    def with_call(self, change: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Self:
        """Return a twin whose `predict_action_chunk` is another function, such as the compiled one.

        Raises:
            UnsupportedPolicy: it is asked by `select_action`, whose queues are no graph.
        """
        if self.selects:
            raise UnsupportedPolicy(
                f"policy {self.spec.type!r} is opaque and is asked by its own select_action, whose queues "
                "are not compiled"
            )
        twin = copy.copy(self)
        twin._call = change(self._call)
        return twin

    def check_continuing(self, settings: RealTimeChunking) -> None:
        """Raise unless lerobot's own real-time chunking of this policy does what is asked.

        Raises:
            UnsupportedPolicy: the policy has none.
            BadSetting: it is asked for in a way that lerobot has not.
        """
        if self.selects or not self.policy.supports_rtc():
            raise UnsupportedPolicy(NO_DENOISING.format(self.spec.type))
        if settings.method != "guidance" or settings.jacobian != "identity":
            raise BadSetting(
                f"policy {self.spec.type!r} continues chunks by lerobot's own real-time chunking, which is "
                f"method=guidance with jacobian=identity; found {settings.method} with {settings.jacobian}"
            )

    def continued(self, follow: Continuation) -> Self:
        """Return a twin whose chunks continue others, as lerobot's own real-time chunking has it."""
        twin = copy.copy(self)
        twin._follow = follow
        return twin

    def begin(self, x: Tensor) -> Tensor:
        """Return the noise: what chunks continue is told to lerobot."""
        return x

    @contextmanager
    def _continuing(self, row: int) -> Iterator[dict[str, Any]]:
        """What the policy is told of the chunk before one row, its real-time chunking set meanwhile.

        Weights say it all: those of 1 are the delay's, and what has any is known. lerobot fills what is not
        known with zeros, and draws the chunk towards them; it is left out here.
        """
        if self._follow is None:
            yield {}
            return
        weights = self._follow.weights[row, :, 0]
        known, delay = int((weights > 0).sum()), int((weights == 1).sum())
        before = self._follow.actions[row, :known] if known else None
        config = self.policy.config
        kept = getattr(config, "rtc_config", None)
        _set_rtc(self.policy, _rtc_config(self._follow.settings, self.spec.horizon))
        try:
            yield {"inference_delay": delay, "prev_chunk_left_over": before}
        finally:
            _set_rtc(self.policy, kept)

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Refuse: the loop is inside the policy."""
        raise UnsupportedPolicy(f"policy {self.spec.type!r} is opaque: its sampler cannot be changed")

    def _hoisted(self, sampler: Sampler) -> "OpaquePolicy":
        """Refuse: there are no stages."""
        raise UnsupportedPolicy(f"policy {self.spec.type!r} is opaque: nothing to hoist")


def check_alone(config: Any) -> None:
    """Raise `UnsupportedPolicy` for what is known not to run alone, row by row, or not known to."""
    for is_asked, why in _REFUSED.get(config.type, ()):
        if is_asked(config):
            raise UnsupportedPolicy(f"policy {config.type!r} {why}")


def _queues(policy: Any) -> dict[str, Any]:
    """Queues of a policy that has been reset: of observations by key, and of actions."""
    own = getattr(policy, "_action_queue", None)
    return {**getattr(policy, "_queues", {})} | ({} if own is None else {ACTION: own})


def _keeps_observations(policy: Any) -> bool:
    return bool(_queues(policy).keys() - {ACTION})


def _executed(policy: Any) -> int:
    """Actions of a chunk that the policy's own loop executes."""
    queue = _queues(policy).get(ACTION)
    own: int | None = None if queue is None else queue.maxlen
    return own or int(getattr(policy.config, "n_action_steps", 1))


def _takes(policy: Any, name: str) -> bool:
    """Whether `predict_action_chunk` takes an argument, or passes it on to its model."""
    parameters = inspect.signature(policy.predict_action_chunk).parameters
    passes_on = any(it.kind is inspect.Parameter.VAR_KEYWORD for it in parameters.values())
    model = getattr(getattr(policy, "model", None), "sample_actions", None)
    return name in parameters or (
        passes_on and model is not None and name in inspect.signature(model).parameters
    )


def _selected(policy: Any, one: Batch, spec: PolicySpec) -> Tensor:
    """What the policy's own loop would execute (1, n, A) after a history of observations (1, To, ...)."""
    own, n = policy.config.input_features, spec.n_obs_steps
    for t in range(n - 1):
        _queues(policy)[ACTION].append(torch.zeros(1, spec.action_dim))  # there is one: it only looks
        policy.select_action({key: value[:, t] if key in own else value for key, value in one.items()})
    newest = {key: value[:, -1] if n > 1 and key in own else value for key, value in one.items()}
    first = policy.select_action(newest)
    return torch.stack([first, *_queues(policy).get(ACTION, ())], dim=1)


def _seeded(row: Tensor) -> AbstractContextManager[None]:
    """Let whatever draws from torch's generators meanwhile draw as a row of noise says."""
    data = row.detach().cpu().float().contiguous().numpy().tobytes()
    return seeded(int.from_bytes(hashlib.sha256(data).digest()[:7]), row.device)


def _rtc_config(settings: RealTimeChunking, horizon: int) -> RTCConfig:
    """The same for lerobot, with its own largest factor where none is asked for."""
    most = settings.max_guidance_weight
    return RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule[settings.schedule.upper()],
        execution_horizon=settings.execution_horizon or horizon,
        **({} if most is None else {"max_guidance_weight": most}),
    )


def _set_rtc(policy: Any, config: RTCConfig | None) -> None:
    """Set real-time chunking as lerobot-rollout does."""
    policy.config.rtc_config = config
    if hasattr(policy, "init_rtc_processor"):
        policy.init_rtc_processor()
