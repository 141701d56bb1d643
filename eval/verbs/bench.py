"""`vivace bench`: the claim and its baselines, timed interleaved in one process at batch 1.

`--policy.type` builds a published architecture at its true size, with random weights, instead of a
checkpoint: what it costs can be timed, lerobot's own chunk beside it, and nothing is said of success.

With `--bench.n_episodes` every plan also runs the same episodes in a frozen world, so many of every task, so
that a Pareto table of latency against success comes out of one command.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vivace.accel.apply import accelerate, calibrated
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.accel.technique import CalibrationData, Need
from vivace.accel.techniques.compile import compiled
from vivace.accel.variant import Variant
from vivace.eval.measure.action_error import sample_all
from vivace.eval.measure.bundle_rows import BundleRun
from vivace.eval.measure.judge import (
    Judging,
    check_judging,
    chosen,
    confirm,
    confirmed_episodes,
    judge,
    judging_jobs,
)
from vivace.eval.measure.latencies import Measured, chunk_latencies, warm_up
from vivace.eval.measure.layer_curve import policy_curve
from vivace.eval.measure.pareto import pareto_row
from vivace.eval.measure.threads import choose_threads, restored_threads
from vivace.eval.measure.timing import Rounds
from vivace.eval.measure.variants import ACCELERATED, LEROBOT, SAVED, labelled, unfit, variants_of
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe, some
from vivace.eval.options import CommonOptions
from vivace.eval.output import claim, output_folder
from vivace.eval.profile.measuring import write_profile
from vivace.eval.report.bench_table import table
from vivace.eval.report.bundle_table import bundle_table
from vivace.eval.report.results import circumstances, write_results
from vivace.eval.report.stage_table import stage_table
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.scale.job import Job
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.scale.shard import share_folder, write_share
from vivace.eval.scale.workforce import Workforce
from vivace.eval.subject import load, load_plan, loading, session
from vivace.eval.terminal import console
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.errors import (
    BadSetting,
    CalibrationError,
    NonFiniteActions,
    PlanMismatch,
    UnsupportedPolicy,
    in_one_line,
)
from vivace.policies.execution import Execution, as_trained, check_continuing, executing
from vivace.policies.load import LoadedPolicy
from vivace.policies.published.build import told as built_from
from vivace.policies.sampling.real_time_chunking import RealTimeChunking


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
    batch_size: int = 10
    """Episodes stepped together; what a worker takes at a time."""
    only: list[str] = field(default_factory=list)
    """Names of the plans to run besides the plain loop; all when empty."""
    bundles: list[str] = field(default_factory=list)
    """Folders of vivace export, of this policy, to time in the same rounds (success is not theirs)."""
    profile: str = ""
    """File to write a profile of this machine into, in the place of a table: vivace tune --budget.device=FILE
    predicts latencies by it elsewhere."""


@dataclass(kw_only=True)
class BenchCommand(CommonOptions):
    """Time plans interleaved in one process, batch 1; judge them by success too.

    Example: vivace bench --policy.path=zoo/reach --env.task=reach-v3 --accel.block_cache.updates=10, or
    vivace bench --policy.type=smolvla --policy.dtype=bfloat16 --bench.only=[hoist] --bench.repeats=5
    """

    TIMES_CHUNKS = True
    BUILDS = True
    COUNTS_BASES = True
    bench: BenchOptions = field(default_factory=BenchOptions)
    scale: ScaleOptions = field(default_factory=ScaleOptions)

    def __post_init__(self) -> None:
        """Of random weights there is nothing to judge, and one observation is as good as another."""
        super().__post_init__()
        if not self.policy.type:
            return
        if self.bench.n_episodes:
            raise BadSetting(
                f"--policy.type={self.policy.type} has random weights: no success to judge by episodes; "
                "leave out bench.n_episodes"
            )


@restored_threads()
def run(command: BenchCommand) -> tuple[dict[str, Any], bool]:
    """Calibrate every row of the table, time them, judge them, print the table, write results.json."""
    command.scale.check(command)
    loaded = load(command)
    if command.bench.profile:
        return write_profile(command, loaded, Path(command.bench.profile)), True
    variants = _variants(command, loaded)
    names = [variant.name for variant in variants]
    values = ("ratio", "success") if command.bench.n_episodes else ("ratio",)
    requirements = read_requirements(command.require, names, values)
    exported = [BundleRun(path, loaded, command.bench.threads) for path in command.bench.bundles]
    folder = output_folder("bench", command.output_dir, command.job_name)
    if command.scale.share:
        folder = share_folder(folder, command.scale.share)
    claim(folder, _identity(command, loaded, variants))
    threads = _choose_threads(command, loaded, variants)
    fitted = observe(command, loaded)
    kept = [one for one in SAVED if one in variants]
    saved = load_plan(command, loaded) if kept else None
    known = [saved, *(run.plan for run in exported)]
    seeds = fitted.seeds.union(*(fitted_seeds(plan) for plan in known if plan))
    check_judging(command, names, seeds)
    built = build(loaded, [one for one in variants if one not in SAVED], fitted, command.loop.chunking)
    if not command.bench.only:
        built = built.joined(Built((), {}, unfit(loaded.staged)))
    data = observe(command, loaded, seed=JUDGEMENT_SEED)
    check_apart(seeds, data.seeds)
    if saved:
        built = built.joined(_saved(loaded, saved, kept, fitted))
    if command.policy.type:
        built = built.joined(_lerobot_alone(loaded, data))
    others = {run.name: run for run in exported}
    sessions = {name: session(command, loaded, execution) for name, execution in built.executions.items()}
    measured = chunk_latencies({**sessions, **others}, data, Rounds(repeats=command.bench.repeats))
    rows = _rows(built, exported, measured, data)
    results = circumstances("bench", command, loaded) | {
        "pareto": rows,
        "latencies_s": measured.times_s,
        "threads": threads | {"episodes": command.scale.threads_of_episodes(threads["used"])},
        "observations": {"fitted": counts(fitted), "judged": counts(data)},
        "left_out": built.left_out,
    }
    if Need.LANGUAGE.is_met(loaded.staged) and not command.policy.type:
        results["layer_curve"] = {
            rule: policy_curve(built.executions["plain"], data, rule) for rule in ("importance", "uniform")
        }
    source = data.source
    if command.policy.type:
        results["built"] = built_from(command.policy.type, loaded)
        source = f"{source}; {results['built']}"
    if command.bench.n_episodes:
        told = _judge(command, loaded, built, results, folder)
        if command.scale.share:
            return told, True
    write_results(folder, results)
    _print(rows, built.left_out, source, [bundle_table(rows)] if exported else [])
    summary = {row["name"]: {key: row[key] for key in _TOLD if key in row} for row in rows}
    report = {"results": str(folder / "results.json"), "plans": summary, "left_out": built.left_out}
    report |= {"built": results["built"]} if "built" in results else {}
    return report, are_met(requirements, summary)


def _print(rows: list[dict[str, Any]], left_out: dict[str, str], source: str, more: list[Any]) -> None:
    """Print the tables of all rows."""
    for one in (table(rows, left_out, source), stage_table(rows), *more):
        Console().print(one)


_TOLD = ("latency_s", "ratio", "over_lerobot", "action_error", "success", "score", "confirmed")
"""What the last line says of a row."""


def _rows(
    built: "Built", exported: Sequence[BundleRun], measured: Measured, data: CalibrationData
) -> list[dict[str, Any]]:
    """Latency, action error and stages of what was measured."""
    times, reference = measured.times_s, sample_all(built.executions["plain"], data)
    rows = [pareto_row(v, built.executions[v.name], times, reference, data) for v in built.variants]
    rows += [run.row(times, reference, data) for run in exported]
    for row in rows:
        row["stages_s"] = measured.stages_s.get(row["name"], {})
    return rows


def _judge(
    command: BenchCommand, loaded: LoadedPolicy, built: "Built", results: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Judge rows by success, and the chosen ones on fresh seeds; what was found is put into them.

    A share of the episodes is written instead, and what is said of it returned.
    """
    rows, options, share = results["pareto"], command.bench, command.scale.share
    variants = {one.name: one for one in built.variants if not one.is_compiled}
    tasks = tuple(command.env.tasks)
    names = tuple(row["name"] for row in rows if row["name"] in variants)
    judging = Judging(names, tasks, command.seed, options.n_episodes)
    n_confirm = confirmed_episodes(command)

    def fresh() -> Judging:
        found = chosen([row for row in rows if row["name"] in names], options.choose)
        again = tuple(name for name in names if name in ("plain", *found))
        return Judging(again, tasks, command.seed + options.n_episodes, n_confirm)

    def jobs(one: Judging) -> list[Job]:
        return judging_jobs(command, loaded, built.executions, variants, one)

    with Workforce(command.scale, loading(command)) as workforce:
        if share:
            wanted = [judging, fresh()] if n_confirm else [judging]
            results["judging"] = [asdict(one) for one in wanted]
            asked = [job for one in wanted for job in jobs(one)]
            episodes = workforce.run(asked, folder / "episodes")
            results["wall"] = workforce.stopwatch.summary()
            identity = _identity(command, loaded, built.variants)
            return write_share(folder, share, identity, asked, results, episodes)
        judge(rows, judging, workforce.run(jobs(judging), folder / "episodes"))
        if n_confirm:
            again = fresh()
            confirm(rows, again, workforce.run(jobs(again), folder / "episodes"))
    return {}


def counts(data: CalibrationData) -> dict[str, Any]:
    """How many observations there are, where they are from, and the seeds or marks of their episodes."""
    return {"n": len(data.noise_keys), "from": data.source, "seeds": sorted(data.seeds)}


UNFIT = (UnsupportedPolicy, CalibrationError, PlanMismatch, NonFiniteActions)
"""What is wrong with a row alone: a table is made without it."""


@dataclass(frozen=True)
class Built:
    """Rows of a table made ready to run, and why others are not."""

    variants: tuple[Variant, ...]
    executions: dict[str, Execution]
    left_out: dict[str, str]
    """Name of a row that does not fit the policy, or of techniques that have none -> the reason."""

    def joined(self, other: "Built") -> "Built":
        """Return both."""
        return Built(
            self.variants + other.variants, self.executions | other.executions, self.left_out | other.left_out
        )


def build(
    loaded: LoadedPolicy,
    variants: Sequence[Variant],
    data: CalibrationData,
    chunking: RealTimeChunking | None = None,
) -> Built:
    """Calibrate and apply every variant.

    Args:
        loaded: the policy.
        variants: rows, such as `variants_of` gives.
        data: observations to calibrate on.
        chunking: how their chunks are to continue the ones before; they need not when None.

    Returns:
        The rows that fit the policy, what calibration chose added to their labels, and why others do not.
    """
    made: list[Variant] = []
    executions: dict[str, Execution] = {}
    left_out: dict[str, str] = {}
    eager: dict[str, tuple[AccelerationPlan, Execution]] = {}
    for variant in variants:
        key = f"{variant.wanted!r} {variant.n_action_steps}"
        try:
            with console.status(f"calibrating {variant.label}"):
                if key not in eager:
                    policy = executing(loaded.staged, variant.n_action_steps)
                    eager[key] = calibrated(policy, loaded.fingerprint, data, variant.wanted)
                plan, execution = eager[key]
                if chunking is not None:
                    check_continuing(execution, chunking)
                warm_up(execution, data)
                executions[variant.name] = execution
        except UNFIT as error:  # it does not fit this policy; else a mistake
            left_out[variant.name] = str(error)
            continue
        made.append(labelled(variant, plan))
    return Built(tuple(made), executions, left_out)


def _lerobot_alone(loaded: LoadedPolicy, data: CalibrationData) -> Built:
    """Run lerobot's own chunk of the same policy, where it comes apart; else that is what all rows run.

    Some of lerobot's code computes in float32 alone (smolvla's and diffusion's heads): then it has no row.
    """
    if loaded.as_trained.is_opaque:
        return Built((), {}, {})
    alone: Any = OpaquePolicy(loaded.policy)
    alone.spec = replace(loaded.staged.spec, blocks=(), latent_dim=alone.spec.latent_dim)
    try:
        sample_all(as_trained(alone), some(data, range(1)))
    except RuntimeError as error:
        told = f"lerobot's code does not run in {loaded.dtype}: {in_one_line(error)}"
        return Built((), {}, {LEROBOT.name: told})
    return Built((LEROBOT,), {LEROBOT.name: as_trained(alone)}, {})


def _choose_threads(
    command: BenchCommand, loaded: LoadedPolicy, variants: Sequence[Variant]
) -> dict[str, Any]:
    """Choose torch's threads by the saved plan if it is there, else by the plain loop."""
    name, execution = "plain", None
    if ACCELERATED in variants:
        name, execution = ACCELERATED.name, accelerate(loaded.staged, load_plan(command, loaded))
    runs = {name: session(command, loaded, execution)}
    return choose_threads(runs, command.bench.threads)


def _saved(
    loaded: LoadedPolicy, plan: AccelerationPlan, variants: Sequence[Variant], data: CalibrationData
) -> Built:
    """The policy under the plan saved beside it; a plan that cannot be compiled says so."""
    built = Built((), {}, {})
    for variant in variants:
        try:
            with console.status("making the saved plan ready"):
                execution = accelerate(loaded.staged, compiled(plan) if variant.is_compiled else plan)
                warm_up(execution, data)
                built = built.joined(Built((variant,), {variant.name: execution}, {}))
        except UNFIT as error:
            built = built.joined(Built((), {}, {variant.name: str(error)}))
    return built


def _variants(command: BenchCommand, loaded: LoadedPolicy) -> list[Variant]:
    everything = list(variants_of(loaded.staged, command.accel.chosen()))
    if command.accel.path or (loaded.path / FILE_NAME).is_file():
        everything += SAVED
    known = [variant.name for variant in everything]
    for name in command.bench.only:
        if name not in known:
            raise BadSetting(f"bench.only names {name!r}; known plans: {', '.join(known)}")
    return [
        variant
        for variant in everything
        if (command.bench.compile or not variant.is_compiled)
        and (not command.bench.only or variant.name in ("plain", *command.bench.only))
    ]


def _identity(command: BenchCommand, loaded: LoadedPolicy, variants: Sequence[Variant]) -> dict[str, Any]:
    return {
        "verb": "bench",
        "weights": loaded.fingerprint.weights,
        "processors": loaded.fingerprint.processors,
        "plans": {variant.name: variant.wanted for variant in variants if not variant.is_compiled},
        "saved": load_plan(command, loaded).identity if ACCELERATED in variants else None,
        "calibration": [command.accel.episodes, command.accel.samples],
        "judgement": [command.accel.judged_episodes, command.accel.judged_samples],
        "env": vars(command.env),
        "data": asdict(command.data),
        "seed": command.seed,
        "n_action_steps": command.loop.n_action_steps,
    }
