"""The first stage: what a candidate computes, and how far its actions are from those as trained."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vivace.accel.apply import Calibrator
from vivace.accel.flops import count_by_shapes, count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.eval.measure.action_error import action_errors, sample_all
from vivace.eval.observations.observe import some
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.space import describe
from vivace.eval.tune.store import Store
from vivace.eval.tune.study import Study
from vivace.policies.errors import named
from vivace.policies.execution import Denoising, Execution, as_trained, executing
from vivace.policies.load import LoadedPolicy

_SOME = 3
"""Others that have to be better before a candidate is dropped on few observations."""
_CLEARLY = 1.25
"""Times as far from the actions as trained."""
_SLOW_S = 1.0
"""A chunk that takes longer [s] is not run to count its work."""
_BLIND = 2.0
"""Times as far from the actions as trained as those of other moments are: beyond, nothing was seen."""


class Counting:
    """Calibrates candidates of one policy, counts their work, and compares their actions."""

    def __init__(
        self,
        loaded: LoadedPolicy,
        fitted: CalibrationData,
        judged: CalibrationData,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; the policy as trained runs once.

        Args:
            loaded: the policy.
            fitted: observations that candidates are calibrated on.
            judged: observations of other episodes, that their actions are compared on: on a quarter of them
                first, on the others unless nothing can come of it.
            now: clock [s].
        """
        self._now = now
        self._loaded, self._fitted, self._judged = loaded, fitted, judged
        few, n = max(1, len(judged.noise_keys) // 4), len(judged.noise_keys)
        self._parts = [some(judged, rows) for rows in (range(few), range(few, n)) if rows]
        began = now()
        self._references = [sample_all(as_trained(loaded.staged), part) for part in self._parts]
        self._trained_s = (now() - began) / n
        self._count = count_by_shapes if self._trained_s > _SLOW_S else count_flops
        self._apart = moments_apart(torch.cat(self._references), judged.noise_keys)
        self._calibrators: dict[int | None, Calibrator] = {}
        self.chunk_s: dict[str, float] = {}
        """Key of a candidate -> about how long a chunk of it takes [s], of those compared in this process."""

    def made(self, candidate: Candidate) -> tuple[AccelerationPlan, Execution]:
        """Calibrate a candidate; the same candidate gives the same plan."""
        n = candidate.execution.n_action_steps
        if n not in self._calibrators:
            policy = executing(self._loaded.staged, n)
            self._calibrators[n] = Calibrator(policy, self._loaded.fingerprint, self._fitted)
        return self._calibrators[n].plan(candidate.requests)

    def trial(self, candidate: Candidate, known: Collection[Trial] = ()) -> Trial:
        """Count and compare a candidate; whatever is raised is the trial's, not the search's end.

        Args:
            candidate: to be looked at.
            known: trials before it: where some of them leave it no chance, it is dropped early; where one of
                them does the same, it is dropped too.
        """
        try:
            _, execution = self.made(candidate)
            counted = self._count(execution, self._judged.one)
            trial = Trial(
                candidate=candidate,
                status=Status.COUNTED,
                flops=int(counted.total),
                passes=counted.passes,
                follows=isinstance(execution, Denoising) and execution.carries,
            )
            errors: list[float] = []
            for part, reference in zip(self._parts, self._references, strict=True):
                errors += self._errors(candidate, execution, reference, part)
                trial = replace(trial, action_error=float(np.mean(errors)))
                if trial.first_error is None:
                    trial = replace(trial, first_error=trial.action_error)
                if len(errors) < len(self._judged.noise_keys) and (reason := beaten(trial, known)):
                    return trial.dropped(Status.COUNTED, f"on the first {len(errors)} observations {reason}")
        except Exception as error:
            return failure(candidate, error)
        reason = pointless(trial, known, self._apart)
        return trial.dropped(Status.COUNTED, reason) if reason else trial

    def _errors(
        self, candidate: Candidate, execution: Execution, reference: Tensor, part: CalibrationData
    ) -> list[float]:
        """How far actions are from those as trained, which are not far from themselves."""
        n = len(part.noise_keys)
        if not candidate.requests:
            self.chunk_s[candidate.key] = self._trained_s
            return [0.0] * n
        began = self._now()
        errors = action_errors(execution, reference, part)
        self.chunk_s[candidate.key] = (self._now() - began) / n
        return errors


def beaten(trial: Trial, known: Iterable[Trial]) -> str:
    """Say why nothing can come of a trial, from its actions on the first few observations; empty if it may.

    Some others compute no more in no more passes, and are clearly nearer on the very same observations. What
    has to be beaten is looked at whole, and so are some drawn by lot; what computes the same faster is held
    against its like alone.

    Args:
        trial: of known work and first error.
        known: the others. One whose chunks make use of those before says little of one whose do not.
    """
    if trial.candidate.origin.is_rival or trial.candidate.is_drawn:
        return ""
    if trial.flops is None or trial.first_error is None:
        return ""
    better = [
        other
        for other in known
        if other.status is not Status.FAILED
        and other.flops is not None
        and other.first_error is not None
        and (trial.follows or not other.follows)
        and other.candidate.same_work == trial.candidate.same_work
        and other.flops <= trial.flops
        and (other.passes or 0) <= (trial.passes or 0)
        and _CLEARLY * other.first_error < trial.first_error
    ]
    if len(better) < _SOME:
        return ""
    return f"{len(better)} others compute no more and are nearer, {_CLEARLY:g} times at least"


def moments_apart(actions: Tensor, noise_keys: Sequence[tuple[int, ...]]) -> float:
    """How far chunks (B, H, A) of different episodes are apart, as action errors are; inf without others."""
    episodes = torch.tensor([key[0] for key in noise_keys])
    distances = (actions[:, None] - actions[None]).abs().mean(dim=(2, 3))[episodes[:, None] != episodes]
    return float(distances.mean()) if len(distances) else math.inf


def pointless(trial: Trial, known: Iterable[Trial], apart: float) -> str:
    """Say why a trial that was counted whole need not be timed; empty if it has to be.

    Another one does the same: settings that say nothing beside others have many names. Or its actions have
    nothing to do with what is seen; of such ones, fast as they are, too many would race. What has to be
    beaten stays, and so does what is a technique's default where another one does the same.

    Args:
        trial: of known work and action error.
        known: those before it.
        apart: how far actions of different moments are apart, `moments_apart`.
    """
    if trial.candidate.origin.is_rival or trial.follows or trial.action_error is None:
        return ""
    if trial.candidate.origin is Origin.SEARCH:
        for other in known:
            if other.status is not Status.FAILED and not other.follows and _done(other) == _done(trial):
                return f"it does what {describe(other.candidate)} does"
    if trial.action_error > _BLIND * apart and not trial.candidate.is_drawn:
        return f"those as trained of other moments are nearer ({apart:.2g}), {_BLIND:g} times at least"
    return ""


def _done(trial: Trial) -> tuple[object, ...]:
    """What two candidates have in common that do the same."""
    one = trial.candidate
    work, errors = (trial.flops, trial.passes), (trial.first_error, trial.action_error)
    return (*work, *errors, one.same_work, one.execution)


def failure(candidate: Candidate, error: Exception) -> Trial:
    """A trial that raised while it was counted; says what."""
    return Trial(candidate=candidate, status=Status.FAILED, stage=Status.COUNTED, reason=named(error))


def count(
    starters: tuple[Candidate, ...],
    study: Study,
    store: Store,
    trial_of: Callable[[Candidate], Trial],
    goes_on: Callable[[int], bool],
    is_late: Callable[[], bool],
) -> None:
    """Look at the starters, then at what a study asks for, until time is up; store every trial.

    What has to be beaten is looked at however many candidates are asked for, as trained and with exact work
    removed even when time is up, and what is stored already is not looked at again.

    Args:
        starters: looked at first.
        study: asks for more.
        store: of the trials.
        trial_of: counts a candidate.
        goes_on: told how many candidates are known; whether one more may be looked at.
        is_late: whether time is up.
    """
    for trial in store.trials.values():
        study.tell(trial)
    for candidate in starters:
        if candidate.key in store.trials:
            continue
        if candidate.origin is Origin.DEFAULT and not goes_on(len(store.trials)):
            break
        if candidate.origin is Origin.BASELINE and is_late():
            continue
        study.tell(store.add(trial_of(candidate)))
    while goes_on(len(store.trials)):
        asked = study.ask()
        if asked is None:
            break
        study.tell(store.add(trial_of(asked)))
