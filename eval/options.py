"""Options that many verbs share: dotted flags as lerobot's users type them, read by draccus."""

from dataclasses import dataclass, field

from vivace.policies.errors import BadSetting
from vivace.policies.sampling.real_time_chunking import RealTimeChunking


@dataclass(kw_only=True)
class PolicyOptions:
    """Which policy."""

    path: str = "zoo/reach"
    """lerobot checkpoint folder, or zoo/<name>."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1, mps."""
    dtype: str = ""
    """What it computes in: float32, bfloat16, float16; as its weights are stored when not given."""
    n_action_steps: int | None = None
    """Actions executed of a chunk; the checkpoint's own when not given."""
    type: str = ""
    """explain: an architecture in its published size instead of a checkpoint, from shapes alone: cogact;
    smollm2: how redundant the layers of a pretrained language model are."""


@dataclass(kw_only=True)
class EnvOptions:
    """Which environment."""

    type: str = "metaworld"
    task: str = "reach-moving"
    control_hz: float | None = None
    """Control rate [Hz]; the world moves on by one period a tick, always. When not given the rate that the
    policy was trained at, if its checkpoint says it, else the task's own."""
    max_steps: int | None = None
    """Longest episode [steps]; the environment's own when not given."""
    instruction: str = ""
    """What a language-conditioned policy is told; the task's own text when not given."""

    @property
    def rate_hz(self) -> float:
        """The control rate [Hz], once `plans.load` has settled it."""
        if self.control_hz is None:
            raise BadSetting("no control rate was given or found; give --env.control_hz")
        return self.control_hz

    @property
    def tasks(self) -> list[str]:
        """The tasks named, separated by commas; calibrate and bench take several."""
        return [name.strip() for name in self.task.split(",")]


@dataclass(kw_only=True)
class AccelOptions:
    """Which acceleration: a plan to load, or techniques to calibrate."""

    path: str | None = None
    """acceleration.json, or the folder it is in; the one beside the checkpoint when not given."""
    techniques: list[str] = field(default_factory=lambda: ["hoist", "block_cache"])
    method: str = "bac"
    """How update steps are chosen: bac, shared, uniform, deepcache."""
    updates: int = 10
    """Updates per block (S)."""
    bubbling: int = 5
    """Blocks that take part in Bubbling Union (n)."""
    objective: str = "anchor"
    force_last: bool = False
    rule: str = "taylor"
    """Forecast rule: taylor, adams_bashforth, fused."""
    order: int = 1
    """Forecast order."""
    n_dropped: int = 4
    """layer_skip: language layers to drop."""
    layer_rule: str = "importance"
    """layer_skip: importance, greedy, uniform."""
    k_final: int = 56
    """token_select: patches to keep."""
    k_key: int = 4
    alpha: float = 0.5
    token_method: str = "efficientvla"
    """token_select: efficientvla, fastv, random, uniform."""
    token_layer: int = 1
    """token_select: patches are dropped after this layer."""
    sparsity: float = 0.25
    """mlp_prune: share of the channels to cut."""
    rank: int = 0
    """mlp_prune: rank of the compensation."""
    guidance: str = "adaptive"
    """guidance: adaptive, linear."""
    init: str = "prompt"
    """jacobi: first guess: prompt, previous, marginal."""
    freeze: bool = True
    """jacobi: settled tokens leave the block."""
    max_iterations: int = 0
    """jacobi: early exit after so many passes; 0: none."""
    tolerance: float = 0.0
    """jacobi: stop once a pass moves no action by more [normalised]."""
    until: str = "all"
    """jacobi: tokens that must settle: all, executed."""
    temperature: float = 1.0
    """sjd: of the softmax."""
    nodes: int = 16
    """token_recycling, stand: nodes of the tree of guesses."""
    sampler: str = "ddim"
    """For step_schedule: ddpm, ddim, dpmsolver++; euler, rk4 for flow matching."""
    n_steps: int = 16
    spacing: str = "auto"
    """step_schedule: timesteps of fewer steps: leading, trailing, linspace, own (the policy's way), or auto:
    the one that suits the policy, by its chunks on the calibration observations."""
    episodes: int = 3
    """Episodes the calibration observations come from."""
    samples: int = 8
    """Observations to calibrate on."""
    judged_episodes: int = 12
    """Other episodes, whose observations plans are timed and compared on."""
    judged_samples: int = 48
    """Observations to time and compare plans on."""

    def wanted(self) -> list[tuple[str, dict[str, object]]]:
        """(kind, options) of every technique asked for."""
        updates = {
            name: getattr(self, name) for name in ("method", "updates", "bubbling", "objective", "force_last")
        }
        options: dict[str, dict[str, object]] = {
            "mlp_prune": {"sparsity": self.sparsity, "rank": self.rank},
            "layer_skip": {"n_dropped": self.n_dropped, "rule": self.layer_rule},
            "token_select": {
                "k_final": self.k_final,
                "k_key": self.k_key,
                "alpha": self.alpha,
                "method": self.token_method,
                "layer": self.token_layer,
            },
            "guidance": {"method": self.guidance},
            "jacobi": {
                name: getattr(self, name)
                for name in ("init", "freeze", "max_iterations", "tolerance", "until")
            },
            "sjd": {"temperature": self.temperature},
            "token_recycling": {"nodes": self.nodes},
            "stand": {"nodes": self.nodes},
            "step_schedule": {name: getattr(self, name) for name in ("sampler", "n_steps", "spacing")},
            "block_cache": updates,
            "forecast": updates | {"rule": self.rule, "order": self.order},
        }
        return [(kind, options.get(kind, {})) for kind in self.techniques]


@dataclass(kw_only=True)
class CommonOptions:
    """What every verb understands."""

    policy: PolicyOptions = field(default_factory=PolicyOptions)
    env: EnvOptions = field(default_factory=EnvOptions)
    accel: AccelOptions = field(default_factory=AccelOptions)
    seed: int = 100_000
    """Episode i is reset with seed + i; demonstrations use seeds under 100 000."""
    output_dir: str | None = None
    """Folder of the results; outputs/<verb>/<date>/<time>_<job> when not given. One begun is resumed."""
    job_name: str = ""
    require: list[str] = field(default_factory=list)
    """Targets such as accelerated.success>=0.9 or ratio>=3.4; exit code 1 when one is missed."""

    @property
    def chunking(self) -> RealTimeChunking | None:
        """How a chunk continues the one before, where it does."""
        return None
