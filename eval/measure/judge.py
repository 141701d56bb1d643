"""Success of many plans on the same episodes, and of those chosen for it on fresh ones.

The best of many noisy rates is too high by chance: a row on the front of latency and success is run again on
seeds that nobody has seen, beside the plain loop, and both counts are told.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.accel.judgement import check_apart
from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.measure.statistics import paired_difference, wilson_interval
from vivace.eval.measure.trials import stored_rollout
from vivace.eval.simulation.rollout import RolloutSettings
from vivace.eval.subject import check_world, env_maker, session
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy

if TYPE_CHECKING:
    from vivace.eval.verbs.bench import BenchCommand

Row = dict[str, Any]
"""Of the table: "name", "label", "latency_s"; what is judged is added to it."""
Outcomes = Mapping[tuple[str, int], bool]
"""(task, seed) -> success."""


class Judge:
    """Runs episodes in a frozen world; those an interrupted command has stored are not run again."""

    def __init__(
        self,
        command: "BenchCommand",
        loaded: LoadedPolicy,
        executions: Mapping[str, Execution],
        steps: Mapping[str, int | None],
        folder: Path,
    ) -> None:
        """Prepare to judge.

        Args:
            command: names tasks, seed and numbers of episodes.
            loaded: the policy.
            executions: row's name -> the policy under its plan.
            steps: row's name -> actions executed of a chunk, None for the command's number.
            folder: of the command's results.
        """
        self._command, self._loaded, self._folder = command, loaded, folder
        self._executions, self._steps = executions, steps
        self.n, self.n_confirm = command.bench.n_episodes, confirmed_episodes(command)

    def judge(self, rows: Sequence[Row]) -> None:
        """Add success of every row, and its difference to the plain loop on the same seeds.

        Compiled plans are not judged: they give the eager ones' actions, and every batch size is a new graph.
        """
        add_success(rows, {row["name"]: self._outcomes(row, self._command.seed, self.n) for row in rows})

    def confirm(self, rows: Sequence[Row]) -> None:
        """Run the chosen rows and the plain loop on fresh seeds; "confirmed" of a row says how it went."""
        if not self.n_confirm:
            return
        seed = self._command.seed + self.n
        found = chosen(rows, self._command.bench.choose)
        again: list[Row] = [
            {"name": row["name"], "label": row["label"]} for row in rows if row["name"] in ("plain", *found)
        ]
        add_success(again, {row["name"]: self._outcomes(row, seed, self.n_confirm) for row in again})
        by_name = {row["name"]: row for row in again}
        for row in rows:
            if row["name"] in by_name:
                fresh = {k: v for k, v in by_name[row["name"]].items() if k not in ("name", "label")}
                row["confirmed"] = fresh | {"tried": len(rows) - 1, "seed": seed}

    def _outcomes(self, row: Row, seed: int, n_episodes: int) -> Outcomes:
        settings = RolloutSettings(
            n_episodes=n_episodes,
            seed=seed,
            batch_size=self._command.bench.batch_size,
            control_hz=self._command.env.control_hz,
            loop=LoopSettings(n_action_steps=self._steps[row["name"]] or self._command.loop.n_action_steps),
            max_steps=self._command.env.max_steps,
        )
        tasks = self._command.env.tasks
        found: dict[tuple[str, int], bool] = {}
        for task in tasks:
            runner = session(self._command, self._loaded, self._executions[row["name"]], task)
            name = row["name"] if len(tasks) == 1 else f"{row['name']}.{task}"
            episodes = stored_rollout(
                self._folder / "episodes" / f"{name}.from_{seed}.jsonl",
                f"{row['label']}, {task}",
                env_maker(self._command, runner.spec, task),
                runner.predict,
                runner.spec,
                settings,
            )
            found |= {(task, e.seed): e.success for e in episodes}
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
    check_apart(fitted, range(command.seed, command.seed + options.n_episodes + confirmed_episodes(command)))


def add_success(rows: Sequence[Row], outcomes: Mapping[str, Outcomes]) -> None:
    """Add to rows their success with its interval, and the paired difference to the row "plain"."""
    for row in rows:
        mine = outcomes[row["name"]]
        pair = paired_difference(outcomes["plain"], mine)
        row |= {
            "successes": sum(mine.values()),
            "n": len(mine),
            "success": sum(mine.values()) / len(mine),
            "interval": wilson_interval(sum(mine.values()), len(mine)),
            "difference": pair.difference,
            "difference_interval": pair.interval,
            "p_value": pair.p_value,
        }
        tasks = dict.fromkeys(task for task, _ in mine)
        if len(tasks) > 1:
            row["tasks"] = {
                task: sum(success for (where, _), success in mine.items() if where == task) for task in tasks
            }


def chosen(rows: Sequence[Row], named: str = "") -> list[str]:
    """Names of the rows one would choose: the named one, else the front of latency and success.

    A row is on the front if no other one is at least as fast and as successful, and better in one of both.
    """
    if named:
        return [named]

    def beats(other: Row, row: Row) -> bool:
        ours, theirs = (other["success"], -other["latency_s"]), (row["success"], -row["latency_s"])
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))

    return [row["name"] for row in rows if not any(beats(other, row) for other in rows)]
