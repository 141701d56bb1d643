"""`vivace calibrate`: fit a plan to a checkpoint, and measure it on what it was not fitted to."""

from dataclasses import dataclass, replace
from typing import Any

from vivace.accel.apply import calibrated
from vivace.accel.explain import explain, measured
from vivace.accel.flops import count_flops
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.eval.machine import machine
from vivace.eval.measure.action_error import action_errors, sample_all
from vivace.eval.measure.statistics import spread_of
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.options import CommonOptions
from vivace.eval.output import output_folder
from vivace.eval.subject import load
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import as_trained
from vivace.policies.load import LoadedPolicy


@dataclass(kw_only=True)
class CalibrateCommand(CommonOptions):
    """Calibrate techniques for a policy; save them as acceleration.json beside it.

    Example: vivace calibrate --policy.path=outputs/train/push --env.task=push-v3
    --accel.techniques='[hoist, block_cache]' --accel.block_cache.updates=10
    """

    BUILDS = True

    def __post_init__(self) -> None:
        """A plan of random weights has no checkpoint to lie beside."""
        super().__post_init__()
        if self.policy.type and self.output_dir is None:
            raise BadSetting(f"--policy.type={self.policy.type} is no folder; give --output_dir for its plan")


def run(command: CalibrateCommand) -> tuple[dict[str, Any], bool]:
    """Make the plan and save it, beside the checkpoint or where it is wanted."""
    loaded = load(command)
    plan = make_plan(command, loaded)
    target = loaded.path
    if command.output_dir is not None:
        target = output_folder("calibrate", command.output_dir, command.job_name)
    plan.save(target)
    return {"plan": str(target / FILE_NAME), **plan.measurements}, True


def _nothing(loaded: LoadedPolicy, wanted: list[Any]) -> AccelerationPlan:
    """Return the plan of a policy that does not come apart: no techniques, and the policy bit for bit."""
    told = (
        f"policy {loaded.staged.spec.type!r} is opaque: it has no blocks, steps or layers that come apart, "
        "so there is nothing to calibrate; "
    )
    if wanted:
        raise UnsupportedPolicy(f"{told}vivace eval and vivace bench run it without a plan")
    console.print(
        f"{told}its plan has no techniques. --policy.device, --policy.dtype, --loop.mode and vivace export "
        "work on the whole; vivace bench times torch.compile and threads",
        highlight=False,
    )
    measurements = {**machine(loaded.placement, loaded.dtype), "action_error": 0.0}
    return AccelerationPlan(loaded.fingerprint, (), measurements)


def make_plan(command: CommonOptions, loaded: LoadedPolicy) -> AccelerationPlan:
    """Calibrate, measure action error and FLOPs on observations of other episodes, and tell; save nothing.

    Raises:
        UnsupportedPolicy: the policy has no parts, or lacks what a technique works on.
    """
    wanted = command.accel.wanted(loaded.staged)
    if loaded.as_trained.is_opaque:
        return _nothing(loaded, wanted)
    data = observe(command, loaded)
    with console.status("calibrating"):
        plan, execution = calibrated(loaded.staged, loaded.fingerprint, data, wanted)
    baseline = as_trained(loaded.staged)
    judged = observe(command, loaded, seed=JUDGEMENT_SEED)
    check_apart(fitted_seeds(plan), judged.seeds)
    compared: dict[str, Any] = {"follows": True}  # no two chunks come from the same noise
    if not execution.carries:
        with console.status("comparing actions"):
            errors = action_errors(execution, sample_all(baseline, judged), judged)
        compared = spread_of("action_error", errors)
    flops = count_flops(baseline, judged.one), count_flops(execution, judged.one)
    measurements = {
        **plan.measurements,
        **machine(loaded.placement, loaded.dtype),
        **compared,
        "flop_ratio": flops[1].total / flops[0].total,
        "env": command.env.named if command.env.is_named else "",
        "observations": len(data.noise_keys),
        "observations_from": data.source,
        "judged_observations": len(judged.noise_keys),
        "judged_from": judged.source,
    }
    plan = replace(plan, measurements=measurements, execution=command.loop.execution)
    console.print(explain(plan, execution, *flops, console.width), highlight=False)
    console.print(measured(plan), highlight=False)
    return plan
