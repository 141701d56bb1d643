"""Options that many verbs share: dotted flags as lerobot's users type them, read by draccus."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, TypeVar

from vivace.deploy.loop.settings import LoopSettings
from vivace.policies.errors import BadSetting

_T = TypeVar("_T")


@dataclass(kw_only=True)
class PolicyOptions:
    """Which policy."""

    path: str = "zoo/reach"
    """lerobot checkpoint folder, or zoo/<name>."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1, mps."""
    dtype: str = ""
    """What it computes in: float32, bfloat16, float16; as its weights are stored when not given."""
    type: str = ""
    """explain: an architecture in its published size instead of a checkpoint, from shapes alone: cogact;
    smollm2: how redundant the layers of a pretrained language model are."""


@dataclass(kw_only=True)
class EnvOptions:
    """Which environment."""

    type: str = "metaworld"
    """Type of world: metaworld, or one that an installed package offers (entry point group vivace.envs)."""
    task: str = "reach-moving"
    """Task of that world, e.g. reach-v3; several, separated by commas, where a verb takes them."""
    control_hz: float | None = None
    """Control rate [Hz]; the world moves on by one period a tick, always. When not given the rate that the
    policy was trained at, if its checkpoint says it, else the task's own."""
    max_steps: int | None = None
    """Longest episode [steps]; the environment's own when not given."""
    instruction: str = ""
    """What a language-conditioned policy is told; the task's own text when not given."""

    @property
    def rate_hz(self) -> float:
        """The control rate [Hz], once `subject.load` has settled it."""
        if self.control_hz is None:
            raise BadSetting("no control rate was given or found; give --env.control_hz")
        return self.control_hz

    @property
    def tasks(self) -> list[str]:
        """The tasks named, separated by commas; calibrate and bench take several."""
        return [name.strip() for name in self.task.split(",")]


@dataclass(kw_only=True)
class AccelOptions:
    """Which acceleration: a plan to load, or techniques to calibrate; each has flags of its own."""

    path: str | None = None
    """acceleration.json, or the folder it is in; the one beside the checkpoint when not given."""
    techniques: list[str] = field(default_factory=lambda: ["hoist", "block_cache"])
    """Kinds of the techniques to calibrate, in any order."""
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

    def wanted(self) -> list[tuple[str, dict[str, Any]]]:
        """(kind, options) of every technique to calibrate."""
        chosen = self.chosen()
        return [(kind, vars(chosen[kind]) if kind in chosen else {}) for kind in self.techniques]


@dataclass(kw_only=True)
class CommonOptions:
    """What every verb understands."""

    policy: PolicyOptions = field(default_factory=PolicyOptions)
    env: EnvOptions = field(default_factory=EnvOptions)
    accel: AccelOptions = field(default_factory=AccelOptions)
    loop: LoopSettings = field(default_factory=LoopSettings)
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
    RENAMED = {
        "policy.n_action_steps": "loop.n_action_steps",
    }
    """Flag or setting of earlier versions -> its name today."""

    def __post_init__(self) -> None:
        """Refuse what would do nothing."""
        if not self.RUNS_LOOP and self.loop != LoopSettings(n_action_steps=self.loop.n_action_steps):
            raise BadSetting(
                "of loop only n_action_steps has a meaning here; vivace eval and vivace run execute chunks "
                "in other ways"
            )

    @classmethod
    def complete(cls, given: Collection[str]) -> type["CommonOptions"]:
        """Return this command with `--accel.<kind>.<option>` for every option of every technique there is.

        Args:
            given: dotted names of what the user gave.

        Raises:
            BadSetting: an option was given without its technique, as all once were.
        """
        from vivace.accel.registry import techniques

        known = techniques()
        _check_flags(given, known)
        groups = [(kind, found.Options) for kind, found in known.items() if fields(found.Options)]
        accel = _extended(AccelOptions, groups)
        return _extended(cls, [("accel", accel)])


def _extended(settings: type[_T], groups: Sequence[tuple[str, type]]) -> type[_T]:
    """Return a dataclass with more groups of settings; it has its name, by which help finds its texts."""
    fields_ = [(name, group, field(default_factory=group)) for name, group in groups]
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
