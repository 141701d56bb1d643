"""Which candidate to look at next: multi-objective search by Optuna over counted work and action error."""

import math
import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from vivace.eval.tune.candidate import Candidate, Trial
from vivace.eval.tune.space import Space

_TRIES = 16
"""Times another candidate is asked for where one came out that is known."""
_RANDOM = 5
"""One of so many is chosen at random: what has few operations and near actions need not be what succeeds."""
_LEAST = 1e-6
"""Errors below are rounding; their logarithm says nothing."""
_WORST = (math.log(1e18), math.log(1e3))
"""Work and error of what failed: more than any."""


class Study:
    """Asks for candidates, given what is known of others.

    The next one is a function of the seed and of the trials before: a search that goes on where it was
    stopped asks for what it would have asked for.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(directions=["minimize", "minimize"])
        self._told: set[str] = set()

    def tell(self, trial: Trial) -> None:
        """Learn from a trial; where one failed others like it are not worth trying."""
        self._told.add(trial.key)
        choices = self._space.choices_of(trial.candidate)
        params = {name: value for name, (value, _) in choices.items()}
        kinds = {name: kind for name, (_, kind) in choices.items()}
        self._study.add_trial(create_trial(params=params, distributions=kinds, values=_values(trial)))

    def ask(self) -> Candidate | None:
        """Return a candidate that is not known yet; None if none was found."""
        for attempt in range(_TRIES):
            self._study.sampler = self._sampler(len(self._told), attempt)
            asked = self._study.ask()
            candidate = self._space.suggest(asked)
            self._study.tell(asked, state=TrialState.FAIL)  # it is told once something is known of it
            if candidate.key not in self._told:
                return candidate
        return None

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        """What chooses: by what is known, and at random now and then, and where that is known already."""
        seed = int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])
        if attempt or number % _RANDOM == 0:
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, group=True)


def _values(trial: Trial) -> tuple[float, float]:
    """What is minimised: the logarithms of work and of action error."""
    if trial.flops is None or trial.action_error is None:
        return _WORST
    return math.log(max(1, trial.flops)), math.log(max(_LEAST, trial.action_error))
