"""The first stage: what a candidate computes, and how far its actions are from those as trained."""

from collections.abc import Callable

import numpy as np

from vivace.accel.apply import Calibrator
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.eval.measure.action_error import action_errors, sample_all
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.store import Store
from vivace.eval.tune.study import Study
from vivace.policies.errors import in_one_line
from vivace.policies.execution import Denoising, Execution, as_trained, executing
from vivace.policies.load import LoadedPolicy


class Counting:
    """Calibrates candidates of one policy, counts their work, and compares their actions."""

    def __init__(self, loaded: LoadedPolicy, fitted: CalibrationData, judged: CalibrationData) -> None:
        """Prepare; the policy as trained runs once.

        Args:
            loaded: the policy.
            fitted: observations that candidates are calibrated on.
            judged: observations of other episodes, that their actions are compared on.
        """
        self._loaded, self._fitted, self._judged = loaded, fitted, judged
        self._reference = sample_all(as_trained(loaded.staged), judged)
        self._calibrators: dict[int | None, Calibrator] = {}

    def made(self, candidate: Candidate) -> tuple[AccelerationPlan, Execution]:
        """Calibrate a candidate; the same candidate gives the same plan."""
        n = candidate.execution.n_action_steps
        if n not in self._calibrators:
            policy = executing(self._loaded.staged, n)
            self._calibrators[n] = Calibrator(policy, self._loaded.fingerprint, self._fitted)
        return self._calibrators[n].plan(candidate.requests)

    def trial(self, candidate: Candidate) -> Trial:
        """Count and compare a candidate; whatever is raised is the trial's, not the search's end."""
        try:
            _, execution = self.made(candidate)
            errors = action_errors(execution, self._reference, self._judged)
            flops = count_flops(execution, self._judged.one).total
        except Exception as error:
            return failure(candidate, error)
        return Trial(
            candidate=candidate,
            status=Status.COUNTED,
            flops=int(flops),
            action_error=float(np.mean(errors)),
            follows=isinstance(execution, Denoising) and execution.carries,
        )


def failure(candidate: Candidate, error: Exception) -> Trial:
    """A trial that raised while it was counted; says what."""
    told = f"{type(error).__name__}: {in_one_line(error)}"
    return Trial(candidate=candidate, status=Status.FAILED, stage=Status.COUNTED, reason=told)


def count(
    starters: tuple[Candidate, ...],
    study: Study,
    store: Store,
    trial_of: Callable[[Candidate], Trial],
    goes_on: Callable[[int], bool],
) -> None:
    """Look at the starters, then at what a study asks for, until time is up; store every trial.

    What has to be beaten is looked at in any case, and what is stored already is not looked at again.

    Args:
        starters: looked at first.
        study: asks for more.
        store: of the trials.
        trial_of: counts a candidate.
        goes_on: told how many candidates are known; whether one more may be looked at.
    """
    for trial in store.trials.values():
        study.tell(trial)
    for candidate in starters:
        if candidate.key in store.trials:
            continue
        if candidate.origin is Origin.DEFAULT and not goes_on(len(store.trials)):
            break
        study.tell(store.add(trial_of(candidate)))
    while goes_on(len(store.trials)):
        asked = study.ask()
        if asked is None:
            break
        study.tell(store.add(trial_of(asked)))
