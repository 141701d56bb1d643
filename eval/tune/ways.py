"""A plan with its chunks executed otherwise: it computes the same, so it is tried of those that do well."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.space import Space
from vivace.eval.tune.store import Store
from vivace.eval.tune.timing import MANY, Timing
from vivace.policies.spec import ChunkExecution


@dataclass(frozen=True)
class Ways:
    """Makes trials of other ways to execute the chunks of one that was timed."""

    space: Space
    counting: Counting
    store: Store
    timing: Timing
    is_sync: bool
    """The loop acts, then thinks."""

    def of(self, trial: Trial) -> list[ChunkExecution]:
        """Ways that its techniques fit, its own left out."""
        return list(self.space.ways(trial.candidate, self.is_sync))

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
            is_same = (known.flops, known.passes) == (trial.flops, trial.passes)
            if known.is_alive and is_same and not known.latencies_s:
                known = self.store.add(known.became(Status.TIMED, latencies_s=trial.latencies_s))
            found += [known] if known.is_alive else []
        return self.timing.time(found, min(MANY, len(trial.latencies_s)), left_s())
