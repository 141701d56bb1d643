"""The command line's options: dotted flags as lerobot's users type them, read by draccus."""

from dataclasses import dataclass, field

from vivace.eval.latency_model import LatencyModel, MeasuredLatency
from vivace.policies.chunking import RealTimeChunking
from vivace.policies.errors import BadSetting


@dataclass(kw_only=True)
class PolicyOptions:
    """Which policy."""

    path: str = "zoo/reach"
    """lerobot checkpoint folder, or zoo/<name>."""
    device: str = "cpu"
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
class EvalOptions:
    """How to evaluate."""

    n_episodes: int = 20
    batch_size: int = 50
    """Episodes stepped together, their inference batched."""
    mode: str = "sync"
    """sync, async or rtc (async, and a chunk continues the one before)."""
    request_at: int | None = None
    """async, rtc: ask for the next chunk when so many fresh actions are left, which times the control period
    is the latency budget; by the expected latency when not given."""
    ladder: list[str] = field(default_factory=list)
    """async, rtc: one more run, which chooses among these plans, best first, before every chunk: plain,
    accelerated, or rows of bench's table such as ddim-4; each is run alone too."""
    curve: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0])
    """Constant latencies [s] of the success-versus-latency curve; empty leaves it out."""
    curve_runs: list[str] = field(default_factory=lambda: ["accelerated"])
    """Runs that have a curve: plain, accelerated, fewer_steps, fewer_steps_dpm."""
    curve_modes: list[str] = field(default_factory=list)
    """Modes in which they have one, such as [sync,async,rtc]; the evaluation's own when empty."""
    timed_chunks: int = 100
    """Chunks of every run with episodes that are timed, as many as a p99 takes; other rows of the Pareto plot
    are timed --bench.repeats times."""
    timed_s: float = 20.0
    """Longest time [s] a run is timed for; a slow one has fewer chunks then, and fewer percentiles."""
    lineup: bool = True
    """Time every baseline and compare its actions (the Pareto plot)."""
    video: bool = True
    """Film one episode under every run, side by side."""


@dataclass(kw_only=True)
class BenchOptions:
    """How to time."""

    repeats: int = 10
    """Timed rounds; every plan runs once a round."""
    threads: int | None = None
    """torch threads; when not given as many as are measured to be fastest."""
    compile: bool = True
    """Time torch.compile too (takes a minute or more to compile)."""
    n_episodes: int = 0
    """Episodes in a frozen world by which every plan is judged too; 0 leaves success out."""
    confirm: int | None = None
    """Episodes on fresh seeds by which chosen plans are judged again; n_episodes when not given, 0: none."""
    choose: str = ""
    """The plan that is judged again; those on the front of latency and success when not given."""
    batch_size: int = 50
    """Episodes stepped together."""
    only: list[str] = field(default_factory=list)
    """Names of the plans to run besides the plain loop; all when empty."""
    bundles: list[str] = field(default_factory=list)
    """Folders of vivace export, of this policy, to time in the same rounds (success is not theirs)."""


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


@dataclass(kw_only=True)
class EvalCommand(CommonOptions):
    """Evaluate a policy, unaccelerated and accelerated, in a world that does not wait.

    Example: vivace eval --policy.path=zoo/reach --env.task=reach-moving --eval.n_episodes=50
    """

    eval: EvalOptions = field(default_factory=EvalOptions)
    bench: BenchOptions = field(default_factory=lambda: BenchOptions(repeats=5, compile=False))
    latency: LatencyModel = field(default_factory=MeasuredLatency)
    rtc: RealTimeChunking = field(default_factory=RealTimeChunking)


@dataclass(kw_only=True)
class BenchCommand(CommonOptions):
    """Time plans interleaved in one process, batch 1; with --bench.n_episodes also judge them by success.

    Example: vivace bench --policy.path=zoo/reach --env.task=reach-v3 --accel.updates=10 --accel.bubbling=5
    """

    bench: BenchOptions = field(default_factory=BenchOptions)


@dataclass(kw_only=True)
class CalibrateCommand(CommonOptions):
    """Calibrate techniques for a policy and save them as acceleration.json beside the checkpoint.

    Example: vivace calibrate --policy.path=outputs/train/push --env.task=push-v3
    --accel.techniques='[hoist, block_cache]' --accel.updates=10 --accel.bubbling=5
    """


@dataclass(kw_only=True)
class ExplainCommand(CommonOptions):
    """Say what a plan does: step by block grid, FLOPs saved stage by stage.

    Example: vivace explain --policy.path=zoo/reach, or vivace explain --policy.type=cogact
    """


@dataclass(kw_only=True)
class ExportOptions:
    """What goes into a bundle."""

    plan: bool = True
    """The plan that --accel.path names, else the one beside the checkpoint, if there is one; false: none."""
    plans: list[str] = field(default_factory=list)
    """Several plans in the place of one, the usual one first: files or folders, "own" for the one beside the
    checkpoint, "plain" for none. A plan has the name of its folder, and is run as bundle#name."""
    into: str = ""
    """Bundle that the plans are added to; graphs that it has already are not exported again."""
    precision: str = "fp32"
    """fp32, proven equal to torch; fp16, int8 (matrix products, quantised as they come), or bf16 (by OpenVINO
    on a processor that has it): the error of the actions is reported."""
    samples: int = 8
    """Observations of other episodes than the plan was calibrated on, to prove parity on."""
    instructions: list[str] = field(default_factory=list)
    """Texts a policy that reads one will be told; those of the tasks named when empty."""
    sign_key: str = ""
    """PEM file of an ed25519 private key to sign the bundle with (openssl genpkey -algorithm ed25519); robots
    check it with --public_key."""
    action_kinds: list[str] = field(default_factory=list)
    """What each dimension of the actions means, or all of them: absolute, delta, velocity; the environment's
    when empty."""


@dataclass(kw_only=True)
class ExportCommand(CommonOptions):
    """Export a policy under its plan as ONNX graphs that run without torch; parity is proven first.

    Example: vivace export --policy.path=zoo/reach --env.task=reach-v3 --output_dir=outputs/bundles/reach
    Another plan of the same policy: vivace export --policy.path=zoo/reach --env.task=reach-v3
    --accel.path=outputs/plans/faster --export.into=outputs/bundles/reach
    """

    export: ExportOptions = field(default_factory=ExportOptions)


@dataclass(kw_only=True)
class ConvertCommand:
    """Convert a CogACT run folder or an OpenVLA checkpoint to a lerobot checkpoint folder, once.

    Example: vivace convert --run=CogACT-Base --tokenizer=llama2/tokenizer.json
    --unnorm_key=bridge_orig --output_dir=outputs/cogact-base
    """

    run: str
    """CogACT: folder with config.json, dataset_statistics.json and checkpoints/*.pt. OpenVLA: folder with
    config.json and *.safetensors."""
    tokenizer: str
    """tokenizer.json of the language model."""
    unnorm_key: str | None = None
    """Dataset whose statistics bring actions back to the robot's units."""
    horizon: int | None = None
    """OpenVLA: actions of a chunk, if it was fine-tuned to write more than one."""
    output_dir: str


@dataclass(kw_only=True)
class ReportCommand:
    """Write report.html and trace.json again from a results.json.

    Example: vivace report --results=outputs/eval/2026-11-23/10-00-00_eval/results.json
    """

    results: str


@dataclass(kw_only=True)
class DoctorCommand:
    """Check this installation: versions, simulator, rendering, bundled checkpoints, parity.

    Example: vivace doctor
    """
