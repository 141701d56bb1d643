"""Say what a plan does: the grid of steps and blocks, the work saved by stage, and what was refused."""

from collections.abc import Mapping

from vivace.accel.flops import Flops
from vivace.accel.freeze import freeze_of
from vivace.accel.plan import AccelerationPlan
from vivace.accel.rows import Row, schedule_of
from vivace.policies.execution import Decoding, Execution, always_compute

FRESH, REUSED, FORECAST, DECIDED, LEFT_OUT, ALONE = "#", "·", "~", "?", " ", "a"
_FEWEST = 10
"""Steps of a row of the grid, however narrow the terminal is."""


def grid(execution: Execution) -> dict[str, str]:
    """Return block id -> one mark a step: # computed, · reused, ~ forecast, ? decided as it runs.

    Steps that a chunk leaves out which follows another are blank. Where the context of a joint denoiser is
    frozen it is a: computed of the action tokens alone. A policy that writes tokens has no such blocks.
    """
    match execution:
        case Decoding():
            return {}
    blocks, schedule, freeze = execution.policy.spec.block_ids, schedule_of(execution), freeze_of(execution)
    left_out, n = LEFT_OUT * execution.first, len(execution.sampler) - execution.first
    if freeze is not None:
        marks = "".join(FRESH if is_full else ALONE for is_full in freeze.full[execution.first :])
        return dict.fromkeys(blocks, left_out + marks)
    if schedule is None:
        mark = FRESH if execution.action is always_compute else DECIDED
        return dict.fromkeys(blocks, left_out + mark * n)
    rows = [_marks(row) for row in schedule.rows[execution.first :]]
    return {name: left_out + "".join(row[name] for row in rows) for name in blocks}


def _marks(row: Row) -> dict[str, str]:
    marks = dict.fromkeys(row.fresh, FRESH)
    for group in row.groups:
        marks |= dict.fromkeys(group.members, REUSED if group.weights == (1.0,) else FORECAST)
    return marks


def explain(
    plan: AccelerationPlan, execution: Execution, baseline: Flops, accelerated: Flops, width: int = 80
) -> str:
    """Describe a plan in text: techniques, FLOPs stage by stage, and the grid.

    Args:
        plan: what was chosen.
        execution: the policy under it.
        baseline: work of the plain loop.
        accelerated: work of `execution`.
        width: columns of the terminal; a grid of more steps goes on below.
    """
    lines = [f"plan for {plan.fingerprint}"]
    for technique in plan.techniques:
        told = ["exact"] if technique.is_exact else []
        told += [f"{name}={value}" for name, value in technique.told().items()]
        lines.append(f"  {technique.kind:<14} {', '.join(told)}".rstrip())
    if not plan.techniques:
        lines.append("  no techniques: everything is computed at every step")
    if plan.execution.chosen:
        lines.append(f"  {'chunks':<14} {plan.execution}")
    if execution.carries:
        lines.append("  counted of chunks that follow another; the first of an episode takes all steps")
    lines += ["", _flops_table(baseline, accelerated), ""]
    schedule = schedule_of(execution)
    if schedule is not None:
        lines.append(
            f"{FRESH} computed   {REUSED} reused   {FORECAST} forecast   "
            f"({schedule.programs} distinct steps of {len(schedule.rows)})"
        )
    if freeze_of(execution) is not None:
        lines.append(f"{FRESH} computed   {ALONE} of the action tokens alone, the context frozen")
    return "\n".join(lines + _grid_lines(grid(execution), width))


def _grid_lines(rows: Mapping[str, str], width: int) -> list[str]:
    """Marks of every block and, in the last part, how many steps compute it, in parts that fit the width."""
    if not rows:
        return []
    names, steps = max(map(len, rows)), len(next(iter(rows.values())))
    room = max(_FEWEST, width - names - len("  1000"))
    lines = []
    for first in range(0, steps, room):
        end = min(steps, first + room)
        lines += [f"steps {first} to {end - 1}"] if steps > room else []
        for name, marks in rows.items():
            count = f" {marks.count(FRESH):>4}" if end == steps else ""
            lines.append(f"{name:<{names}} {marks[first:end]}{count}")
    return lines


def _flops_table(before: Flops, after: Flops) -> str:
    def stages(flops: Flops) -> dict[str, int]:
        return {
            "encode": flops.encode - flops.language,
            **({"language": flops.language} if flops.language else {}),
            **({"decode": flops.decode} if flops.decode else _steps(flops)),
            "total": flops.total,
        }

    def _steps(flops: Flops) -> dict[str, int]:
        blocks = sum(flops.blocks.values())
        return {"condition": flops.condition, "blocks": blocks, "embed, head": flops.rest}

    first, second = stages(before), stages(after)
    lines = [f"{'stage':<12}{'GFLOP':>10}{'with plan':>12}{'saved':>9}"]
    for name, value in first.items():
        saved = 1 - second[name] / value if value else 0.0
        lines.append(f"{name:<12}{value / 1e9:>10.3f}{second[name] / 1e9:>12.3f}{saved:>9.1%}")
    return "\n".join(lines)


def measured(plan: AccelerationPlan, dtype: str = "") -> str:
    """Say how far a plan's actions are from the plain loop's, and on which observations that was measured.

    Args:
        plan: what was measured.
        dtype: what the policy computes in now, e.g. "bfloat16"; a plan may be made in another.
    """
    made_in = str(plan.measurements.get("dtype", dtype))
    told = _measured(plan)
    if dtype in ("", made_in):
        return told
    return f"{told}; measured in {made_in}, run in {dtype}: how far off it is there, was not measured"


def _measured(plan: AccelerationPlan) -> str:
    found = plan.measurements
    if "follows" in found:
        return "no action error: chunks follow others; success says what it is worth: vivace eval"
    if "judged_from" in found:
        low, high = found["action_error_spread"]
        return (
            f"action error {found['action_error']:.4f} ({low:.4f} … {high:.4f}): mean and 10th to 90th "
            f"percentile over observations: {found['judged_from']}; calibrated on others: "
            f"{found['observations_from']}"
        )
    if "judged_observations" in found:  # of an earlier version, which had no observations but simulated ones
        low, high = found["action_error_spread"]
        return (
            f"action error {found['action_error']:.4f} ({low:.4f} … {high:.4f}): mean and 10th to 90th "
            f"percentile over {found['judged_observations']} observations from seed {found['judged_seed']} "
            f"on; calibrated on {found['observations']} others from seed {found['seed']} on"
        )
    if "action_error" in found:
        return (
            f"action error {found['action_error']:.4f} on the observations it was calibrated on, too low for "
            "others; recalibrate: vivace calibrate --policy.path=…"
        )
    return "action error not measured; vivace calibrate measures it"
