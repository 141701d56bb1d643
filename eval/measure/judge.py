"""Success of many plans on the same episodes, and of those chosen for it on fresh ones.

The best of many noisy rates is too high by chance: a row on the front of latency and success is run again on
seeds that nobody has seen, beside the plain loop, and both counts are told.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vivace.accel.judgement import check_apart
from vivace.accel.variant import Variant
from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.measure.statistics import mean_score, paired_difference, paired_scores, wilson_interval
from vivace.eval.scale.job import Job
from vivace.eval.simulation.episode import EpisodeResult
from vivace.eval.simulation.rollout import RolloutSettings
from vivace.eval.subject import check_world, env_maker, session
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy

if TYPE_CHECKING:
    from vivace.eval.verbs.bench import BenchCommand

Row = dict[str, Any]
"""Of the table: "name", "label", "latency_s"; what is judged is added to it."""
Outcomes = Mapping[tuple[str, int], EpisodeResult]
"""(task, seed) -> the episode."""


Episodes = Mapping[str, Sequence[EpisodeResult]]
"""Name of a job -> what came of its episodes."""


@dataclass(frozen=True)
class Judging:
    """Who is judged, and on which episodes; as plain data it lies in results.json of a share."""

    names: tuple[str, ...]
    """Of the rows."""
    tasks: tuple[str, ...]
    seed: int
    n: int
    """Episodes of every task."""

    def job(self, name: str, task: str) -> str:
        """Name of the job of a row in a task."""
        return f"{name if len(self.tasks) == 1 else f'{name}.{task}'}.from_{self.seed}"

    def outcomes(self, episodes: Episodes) -> dict[str, Outcomes]:
        """Row -> every episode of every task."""
        return {
            name: {(task, e.seed): e for task in self.tasks for e in episodes[self.job(name, task)]}
            for name in self.names
        }


def judge(rows: Sequence[Row], judging: Judging, episodes: Episodes) -> None:
    """Add success to the rows that were judged, and the difference to the plain loop on the same seeds."""
    judged = [row for row in rows if row["name"] in judging.names]
    add_success(judged, judging.outcomes(episodes))


def confirm(rows: Sequence[Row], fresh: Judging, episodes: Episodes) -> None:
    """Add "confirmed" to the rows that ran again on fresh seeds: how that went, and how many were tried."""
    again: list[Row] = [{"name": name} for name in fresh.names]
    add_success(again, fresh.outcomes(episodes))
    n_tried = sum("success" in row for row in rows) - 1
    for row in rows:
        for found in again:
            if found["name"] == row["name"]:
                told = {key: value for key, value in found.items() if key != "name"}
                row["confirmed"] = told | {"tried": n_tried, "seed": fresh.seed}


def judging_jobs(
    command: "BenchCommand",
    loaded: LoadedPolicy,
    executions: Mapping[str, Execution],
    variants: Mapping[str, Variant],
    judging: Judging,
) -> list[Job]:
    """Episodes in a frozen world that rows are judged by.

    Compiled plans are not judged: they give the eager ones' actions, and every batch size is a new graph.

    Args:
        command: says how many are stepped together, at what rate, for how long.
        loaded: the policy.
        executions: row's name -> the policy under its plan.
        variants: row's name -> the row, which may execute a number of actions of its own.
        judging: who is judged.
    """
    found = []
    for name in judging.names:
        settings = RolloutSettings(
            n_episodes=judging.n,
            seed=judging.seed,
            batch_size=command.bench.batch_size,
            control_hz=command.env.control_hz,
            loop=LoopSettings(n_action_steps=variants[name].n_action_steps or command.loop.n_action_steps),
            max_steps=command.env.max_steps,
        )
        for task in judging.tasks:
            runner = session(command, loaded, executions[name], task)
            label = f"{variants[name].label}, {task}"
            make_env = env_maker(command, runner.spec, task)
            found.append(Job(judging.job(name, task), label, runner, make_env, settings))
    return found


def confirmed_episodes(command: "BenchCommand") -> int:
    """Episodes by which a choice is confirmed."""
    asked = command.bench.confirm
    return command.bench.n_episodes if asked is None else asked


def check_judging(command: "BenchCommand", names: Collection[str], fitted: Collection[int]) -> None:
    """Refuse what cannot be judged, before anything is measured.

    Args:
        command: the command.
        names: of the rows.
        fitted: seeds of the episodes that plans are fitted to.

    Raises:
        BadSetting: no row is called as the chosen one, a number is negative, something is to be confirmed
            that is not judged, or episodes are among those that plans are fitted to.
    """
    options = command.bench
    if options.n_episodes:
        check_world(command)
    if options.confirm is not None and options.confirm < 0:
        raise BadSetting(f"bench.confirm={options.confirm}; 0 (off) or more is needed")
    if options.choose and options.choose not in names:
        raise BadSetting(f"bench.choose names {options.choose!r}; the plans: {', '.join(names)}")
    if (options.choose or options.confirm) and not options.n_episodes:
        raise BadSetting(
            "bench.choose and bench.confirm run again what was chosen by success, and none is measured; "
            "add --bench.n_episodes=…"
        )
    _check_shares(command)
    check_apart(fitted, range(command.seed, command.seed + options.n_episodes + confirmed_episodes(command)))


def _check_shares(command: "BenchCommand") -> None:
    """Raise `BadSetting` for what no share of the episodes can do alone."""
    options, share = command.bench, command.scale.share
    if share is None:
        return
    if not options.n_episodes or not share.number:
        raise BadSetting(
            f"scale.shard={share}, but only episodes have shares, which meet no latency here; give "
            "--bench.n_episodes and a share from 1 on"
        )
    if confirmed_episodes(command) and not options.choose:
        raise BadSetting(
            "what is confirmed follows from all shares, and none of them knows it; give --bench.confirm=0, "
            "or name it by --bench.choose"
        )


def add_success(rows: Sequence[Row], outcomes: Mapping[str, Outcomes]) -> None:
    """Add to rows their success with its interval, and the paired difference to the row "plain".

    In a world that gives scores also "score", its mean with an interval, and "score_difference", paired.
    """
    for row in rows:
        mine = {at: episode.success for at, episode in outcomes[row["name"]].items()}
        pair = paired_difference({at: e.success for at, e in outcomes["plain"].items()}, mine)
        row |= {
            "successes": sum(mine.values()),
            "n": len(mine),
            "success": sum(mine.values()) / len(mine),
            "interval": wilson_interval(sum(mine.values()), len(mine)),
            "difference": pair.difference,
            "difference_interval": pair.interval,
            "p_value": pair.p_value,
        }
        plain, scores = (_scores(outcomes[name]) for name in ("plain", row["name"]))
        if plain and scores:
            row["score"] = mean_score(list(scores.values()))
            row["score_difference"] = asdict(paired_scores(plain, scores))
        tasks = dict.fromkeys(task for task, _ in mine)
        if len(tasks) > 1:
            row["tasks"] = {
                task: sum(success for (where, _), success in mine.items() if where == task) for task in tasks
            }


def _scores(outcomes: Outcomes) -> dict[tuple[str, int], float]:
    """(task, seed) -> best score; empty unless every episode has one: the mean would be of other seeds."""
    found = {at: episode.score for at, episode in outcomes.items()}
    known = {at: score for at, score in found.items() if score is not None}
    return known if len(known) == len(found) else {}


def worth(rows: Sequence[Row]) -> dict[str, float]:
    """Name of a row -> what it is chosen by: success, or the score where no row ever succeeds."""
    if any(row["successes"] for row in rows) or not all("score" in row for row in rows):
        return {row["name"]: row["success"] for row in rows}
    return {row["name"]: row["score"]["mean"] for row in rows}


def chosen(rows: Sequence[Row], named: str = "") -> list[str]:
    """Names of the rows one would choose: the named one, else the front of latency and success.

    A row is on the front if no other one is at least as fast and as good, and better in one of both. Where no
    row ever succeeds, the score says how good they are, if the world gives one.
    """
    if named:
        return [named]
    good = worth(rows)

    def beats(other: Row, row: Row) -> bool:
        ours, theirs = ((good[it["name"]], -it["latency_s"]) for it in (other, row))
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))

    return [row["name"] for row in rows if not any(beats(other, row) for other in rows)]
