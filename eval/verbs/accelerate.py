"""`vivace accelerate CKPT OUT`: a checkpoint that lerobot's own commands run under a plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vivace.accel.apply import accelerate, exact_plan
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.deploy.lerobot.checked import tolerance
from vivace.deploy.lerobot.checkpoint import check_base, check_target, write
from vivace.eval.measure.action_error import sample_all
from vivace.eval.observations.observe import observe
from vivace.eval.options import CommonOptions
from vivace.eval.subject import load, load_plan
from vivace.eval.terminal import console
from vivace.eval.verbs.calibrate import make_plan
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import as_trained
from vivace.policies.load import LoadedPolicy


@dataclass(kw_only=True)
class AccelerateCommand(CommonOptions):
    """Make a checkpoint that lerobot-eval and lerobot-rollout run under a plan.

    The plan is the one that --accel.path names, else the one beside the checkpoint; without one only work is
    left out that nobody reads. Weights are linked, not copied. lerobot needs our plug-in, which is a
    distribution of its own: pip install lerobot_policy_vivace.

    Example: vivace accelerate outputs/train/push outputs/push-fast
    Then: lerobot-eval --policy.path=outputs/push-fast --env.type=pusht
    With a plan that is made now: vivace accelerate CKPT OUT --calibrate=true --data.repo=DATASET
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("policy.path", "output_dir")

    LENDS_STATISTICS = False  # lerobot would run what is written without them

    calibrate: bool = False
    """Calibrate --accel.techniques first, as vivace calibrate does; the plan is written to OUT alone."""
    copy: bool = False
    """Copy the weights where the two folders are on disks that links do not cross."""


def run(command: AccelerateCommand) -> tuple[dict[str, Any], bool]:
    """Load, find or make the plan, write."""
    if command.output_dir is None:
        raise BadSetting("vivace accelerate needs a folder to write: vivace accelerate CKPT OUT")
    target = Path(command.output_dir)
    check_target(target)
    loaded = load(command)
    check_base(loaded)
    if command.calibrate:
        plan = make_plan(command, loaded)
    elif command.accel.path or (loaded.path / FILE_NAME).is_file():
        plan = load_plan(command, loaded)
    else:
        plan = _exact(command, loaded)
    ways = write(loaded, plan, target, command.copy)
    kinds = [technique.kind for technique in plan.techniques]
    under = (
        f"under {', '.join(kinds)}" if kinds else "as it is: nothing is left out exactly, and it has no plan"
    )
    console.print(f"{loaded.policy.config.type} {under}; weights are {ways}", highlight=False)
    console.print(f"lerobot-eval --policy.path={target} --env.type=…", highlight=False)
    return {
        "policy": str(target),
        "base": loaded.policy.config.type,
        "techniques": kinds,
        "weights": ways,
    }, True


def _exact(command: AccelerateCommand, loaded: LoadedPolicy) -> AccelerationPlan:
    """The plan that leaves out exact work alone, held against the policy as trained.

    Raises:
        UnsupportedPolicy: it changes actions by more than rounding may.
    """
    plan = exact_plan(loaded.staged, loaded.fingerprint)
    if not plan.techniques:
        return plan
    data = observe(command, loaded, samples=2)
    actions = sample_all(accelerate(loaded.staged, plan), data)
    worst = float((actions - sample_all(as_trained(loaded.staged), data)).abs().max())
    allowed, dtype = tolerance(loaded.policy)
    if not worst <= allowed:
        raise UnsupportedPolicy(
            f"without what should be exact to leave out, the actions of {loaded.policy.config.type!r} change "
            f"by {worst:.2g}, {allowed:g} is rounding ({dtype}); run it as it is, and report it"
        )
    console.print(f"exact work left out: actions change by {worst:.2g} ({data.source})", highlight=False)
    return plan
