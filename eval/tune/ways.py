"""A plan with its chunks executed otherwise: it computes the same, so it is tried of those that do well."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.space import Space
from vivace.eval.tune.store import Store
from vivace.eval.tune.timing import MANY, Timing
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import check_continuing
from vivace.policies.spec import ChunkExecution


@dataclass(frozen=True)
class Ways:
    """Makes trials of other ways to execute the chunks of one that was timed."""

    space: Space
    counting: Counting
    store: Store
    timing: Timing
    loop: LoopSettings
    """As the user has it."""

    def of(self, trial: Trial) -> list[ChunkExecution]:
        """Ways that its techniques fit, its own left out."""
        found = list(self.space.ways(trial.candidate, self.loop.is_sync))
        return [one for one in found if self._can_continue(trial, one)]

    def timed(
        self, trial: Trial, executions: Iterable[ChunkExecution], left_s: Callable[[], float]
    ) -> list[Trial]:
        """Count and time a trial executed so; what it computes in the same work takes its latencies over.

        Args:
            trial: that was timed.
            executions: of `of`.
            left_s: time there is; says what is left of it [s].
        """
        found: list[Trial] = []
        for execution in executions:
            candidate = self.space.executed(trial.candidate, execution)
            known = self.store.trials.get(candidate.key)
            if known is None and left_s() <= 0:
                break
            known = known or self.store.add(self.counting.trial(candidate, (trial,)))
            is_known = len(known.latencies_s) >= len(trial.latencies_s)
            if known.is_alive and not is_known and _takes_as_long(known, trial):
                known = self.store.add(known.became(Status.TIMED, latencies_s=trial.latencies_s))
            found += [known] if known.is_alive else []
        return self.timing.time(found, min(MANY, len(trial.latencies_s)), left_s())

    def _can_continue(self, trial: Trial, execution: ChunkExecution) -> bool:
        """Whether its chunks can continue each other, where they would have to."""
        chunking = self.loop.executing(execution).chunking
        if chunking is None:
            return True
        try:
            candidate = self.space.executed(trial.candidate, execution)
            check_continuing(self.counting.made(candidate)[1], chunking)
        except (BadSetting, UnsupportedPolicy):
            return False
        return True


def _takes_as_long(one: Trial, other: Trial) -> bool:
    """Whether two that differ in how chunks are executed compute the same."""
    modes = {trial.candidate.execution.mode for trial in (one, other)}
    return len(modes) == 1 and (one.flops, one.passes) == (other.flops, other.passes)
