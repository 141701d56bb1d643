"""Options that many verbs share: dotted flags as lerobot's users type them, read by draccus."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from vivace.deploy.loop.settings import LoopSettings
from vivace.envs.registry import DEFAULT_TYPE, own_task, world_type
from vivace.policies.errors import BadSetting

if TYPE_CHECKING:
    from vivace.eval.recordings.recording import Recording

_T = TypeVar("_T")


@dataclass(kw_only=True)
class PolicyOptions:
    """Which policy."""

    path: str = "zoo/reach"
    """lerobot checkpoint folder or training run, zoo/<name>, or a name on the Hub: owner/name[@revision]."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1, mps."""
    dtype: str = ""
    """What it computes in: float32, bfloat16, float16; as its weights are stored when not given."""
    type: str = ""
    """bench: a published architecture at its true size, with random weights, instead of a checkpoint:
    smolvla, pi0, pi05, groot, xvla, act, diffusion; fields of lerobot's config are flags then, and
    --policy.cameras. explain: an architecture in its published size, from shapes alone: cogact; smollm2: how
    redundant the layers of a pretrained language model are."""

    @property
    def named(self) -> str:
        """The checkpoint, or what is built instead of one."""
        return f"{self.type}, random weights" if self.type else self.path

    def chosen(self) -> dict[str, Any]:
        """Settings of a published architecture, as the command line has them."""
        own = {known.name for known in fields(PolicyOptions)}
        return {name: value for name, value in vars(self).items() if name not in own}


@dataclass(kw_only=True)
class EnvOptions:
    """Which environment."""

    type: str = ""
    """Ours; lerobot's, such as pusht, aloha, libero, whose options are flags too: --env.obs_type=…; gym with
    --env.id=… and --env.keys=…; one that an installed package offers (entry point group vivace.envs). Ours
    when only a task is given; without either the world in which the plan beside the checkpoint was
    calibrated."""
    task: str = ""
    """Of its tasks, several separated by commas where a verb takes them; the type's first one when not
    given."""
    control_hz: float | None = None
    """Control rate [Hz]; the world moves on by one period a tick, always. When not given the rate that the
    policy was trained at, if its checkpoint says it, else the task's own."""
    max_steps: int | None = None
    """Longest episode [steps]; the environment's own when not given."""
    instruction: str = ""
    """What a language-conditioned policy is told; the task's own text when not given."""
    action_kinds: list[str] = field(default_factory=list)
    """What each dimension of an action means, or all of them, where the world does not say it: absolute (a
    target), delta (a displacement a control period), velocity."""

    @property
    def rate_hz(self) -> float:
        """The control rate [Hz], once `subject.load` has settled it."""
        if self.control_hz is None:
            raise BadSetting("no control rate was given or found; give --env.control_hz")
        return self.control_hz

    def __post_init__(self) -> None:
        """A task alone is one of our own type's."""
        if self.task and not self.type:
            self.type = DEFAULT_TYPE

    @property
    def is_named(self) -> bool:
        """Whether a world is known, by the user or by what `subject.load` found."""
        return bool(self.type)

    @property
    def named(self) -> str:
        """Type and tasks, as plans remember them."""
        return f"{self.type}/{','.join(self.tasks)}"

    @property
    def tasks(self) -> list[str]:
        """The tasks named, separated by commas; calibrate and bench take several."""
        task = self.task or own_task(self.type, **self.chosen())
        return [name.strip() for name in task.split(",")]

    def chosen(self) -> dict[str, Any]:
        """The type's own options, as the command line has them."""
        own = {known.name for known in fields(EnvOptions)}
        return {name: value for name, value in vars(self).items() if name not in own}


@dataclass(kw_only=True)
class DataOptions:
    """Recorded observations, in the place of a world's; how many is said by --accel.samples and its like."""

    repo: str = ""
    """LeRobotDataset: its folder, or its name on the Hub."""
    file: str = ""
    """File that numpy.savez wrote: lerobot's keys -> one row an observation, "task", "episode", "action"."""
    episodes: list[int] = field(default_factory=list)
    """Numbers of the episodes that may be taken; all when empty. Half of them are there to fit plans to, the
    others to judge them on."""
    seed: int = 0
    """Decides which half an episode is in, and which moments are taken."""

    def __post_init__(self) -> None:
        """One source at a time."""
        if self.repo and self.file:
            raise BadSetting("data.repo and data.file are both given; observations are of one of them")
        if self.seed < 0:
            raise BadSetting(f"data.seed={self.seed}; 0 or more is needed")
        if not self.is_named and (self.episodes or self.seed):
            raise BadSetting("data.episodes and data.seed choose from data.repo or data.file; give one")

    @property
    def is_named(self) -> bool:
        """Whether observations are recorded ones."""
        return bool(self.repo or self.file)

    @cached_property
    def recording(self) -> "Recording | None":
        """The recorded episodes, opened once; None if none are named.

        Raises:
            BadSetting: they are not there, or cannot be read.
        """
        from vivace.eval.recordings.source import open_recording

        return open_recording(self.repo, self.file)


@dataclass(kw_only=True)
class AccelOptions:
    """Which acceleration: a plan to load, or techniques to calibrate; each has flags of its own."""

    path: str | None = None
    """acceleration.json, or the folder it is in; the one beside the checkpoint when not given."""
    techniques: list[str] | None = None
    """Kinds of the techniques to calibrate, in any order; when not given exact work is removed, and actions
    are cached or their tokens decoded together, as far as the policy comes apart."""
    episodes: int = 3
    """Episodes the calibration observations come from."""
    samples: int = 8
    """Observations to calibrate on."""
    judged_episodes: int = 12
    """Other episodes, whose observations plans are timed and compared on."""
    judged_samples: int = 48
    """Observations to time and compare plans on."""

    def chosen(self) -> dict[str, Any]:
        """Kind -> `Options` of every technique, as the command line has them."""
        own = {known.name for known in fields(AccelOptions)}
        return {name: value for name, value in vars(self).items() if name not in own}

    def wanted(self, staged: Any) -> list[tuple[str, dict[str, Any]]]:
        """(kind, options) of every technique to calibrate for a policy."""
        from vivace.accel.registry import defaults

        chosen = self.chosen()
        kinds = [kind for kind, _ in defaults(staged)] if self.techniques is None else self.techniques
        return [(kind, vars(chosen[kind]) if kind in chosen else {}) for kind in kinds]


@dataclass(kw_only=True)
class CommonOptions:
    """What every verb understands."""

    policy: PolicyOptions = field(default_factory=PolicyOptions)
    env: EnvOptions = field(default_factory=EnvOptions)
    data: DataOptions = field(default_factory=DataOptions)
    accel: AccelOptions = field(default_factory=AccelOptions)
    loop: LoopSettings = field(default_factory=LoopSettings)
    rename_map: dict[str, str] = field(default_factory=dict)
    """Names of observations as the robot, the environment or the dataset has them -> the policy's, as lerobot
    has it: {"observation.images.top": "observation.images.front"}; as the checkpoint says when not given."""
    seed: int = 100_000
    """Episode i is reset with seed + i; demonstrations use seeds under 100 000."""
    output_dir: str | None = None
    """Folder of the results; outputs/<verb>/<date>/<time>_<job> when not given. One begun is resumed."""
    job_name: str = ""
    """Ends the name of the folder when --output_dir is not given."""
    require: list[str] = field(default_factory=list)
    """Targets such as accelerated.success>=0.9 or ratio>=3.4; exit code 1 when one is missed."""

    RUNS_LOOP = False
    """Whether the control loop executes chunks; else only how many of their actions count is of concern."""
    TIMES_CHUNKS = False
    """Whether it times chunks as the loop asks for them, which in mode rtc continue the ones before."""
    BUILDS = False
    """Whether it takes --policy.type, a published architecture of random weights, instead of a checkpoint."""
    COUNTS_BASES = False
    """Whether a checkpoint without statistics is run on made-up observations: to count work, or time it."""
    LENDS_STATISTICS = True
    """Whether such a checkpoint may run with the statistics of --data.repo."""
    RENAMED = {
        "policy.n_action_steps": "loop.n_action_steps",
    }
    """Flag or setting of earlier versions -> its name today."""

    def __post_init__(self) -> None:
        """Refuse what would do nothing."""
        kept, told = LoopSettings(n_action_steps=self.loop.n_action_steps), "n_action_steps has"
        if self.TIMES_CHUNKS:
            kept = replace(kept, mode=self.loop.mode, rtc=self.loop.rtc)
            told = "n_action_steps, mode and rtc have"
        if not self.RUNS_LOOP and self.loop != kept:
            raise BadSetting(
                f"of loop only {told} a meaning here; vivace eval and vivace run execute chunks in other ways"
            )

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> type["CommonOptions"]:
        """Return this command with what depends on what is installed and asked for.

        That is `--accel.<kind>.<option>` for every option of every technique there is, `--env.<option>` for
        those of the type of world, and `--policy.<field>` for those of a published architecture.

        Args:
            given: dotted name -> value of what the user gave.

        Raises:
            BadSetting: an option was given without its technique, as all once were, or there is no such
                architecture.
            UnknownEnvironment: there is no such type of world.
        """
        from vivace.accel.registry import techniques

        known = techniques()
        _check_flags(given, known)
        groups = [(kind, found.Options) for kind, found in known.items() if fields(found.Options)]
        accel = _extended(AccelOptions, groups)
        own = getattr(world_type(given.get("env.type") or DEFAULT_TYPE), "Options", None)
        env = EnvOptions if own is None else _with_fields(EnvOptions, own)
        return _extended(cls, [("accel", accel), ("env", env), ("policy", cls._policy(given))])

    @classmethod
    def _policy(cls, given: Mapping[str, Any]) -> type[PolicyOptions]:
        """Options of the policy: with those of the architecture that is to be built, if one is."""
        kind = given.get("policy.type")
        if not kind or not cls.BUILDS:
            return PolicyOptions
        from vivace.policies.published.build import options

        return _with_fields(PolicyOptions, options(kind))


def _extended(settings: type[_T], groups: Sequence[tuple[str, type]]) -> type[_T]:
    """Return a dataclass with more groups of settings."""
    return _made(settings, [(name, group, field(default_factory=group)) for name, group in groups])


def _with_fields(settings: type[_T], more: Any) -> type[_T]:
    """Return a dataclass that has the fields of another one too."""
    types, own = get_type_hints(more), {known.name for known in fields(settings)}  # type: ignore[arg-type]
    names = [f for f in fields(more) if f.name not in own]
    return _made(
        settings,
        [(f.name, types[f.name], field(default=f.default, default_factory=f.default_factory)) for f in names],
    )


def _made(settings: type[_T], fields_: Sequence[tuple[str, Any, Any]]) -> type[_T]:
    """Return a dataclass with more fields; it has its name, by which help finds its texts."""
    texts = {"__doc__": settings.__doc__}
    made = make_dataclass(settings.__name__, fields_, bases=(settings,), kw_only=True, namespace=texts)
    made.__module__ = settings.__module__
    return made


def _check_flags(given: Collection[str], known: Mapping[str, Any]) -> None:
    """Refuse options of techniques that are given without their technique; name the flags of today."""
    own = {known.name for known in fields(AccelOptions)}
    for name in sorted(given):
        group, _, option = name.partition(".")
        if group != "accel" or option in ("", *own) or "." in option:
            continue
        flags = [
            f"--accel.{kind}.{technique.former_flags.get(option, option)}"
            for kind, technique in known.items()
            if option in technique.former_flags or option in {f.name for f in fields(technique.Options)}
        ]
        if flags:
            raise BadSetting(f"--accel.{option} is {' or '.join(flags)} now: options belong to a technique")
        if option in known:
            flags = [f"--accel.{option}.{f.name}" for f in fields(known[option].Options)]
            raise BadSetting(
                f"--accel.{option} is a technique, calibrated by --accel.techniques=[{option}]; its options: "
                f"{', '.join(flags) or 'none'}"
            )
