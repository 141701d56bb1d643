"""How much each choice of a search mattered: for the work of a chunk, and for how near its actions are.

Every technique is a choice, there or not, and so is every option of one. PED-ANOVA compares how a choice is
made among the best tenth of the candidates with how it is made among all; shares sum to 1.

Source: Watanabe, Bansal and Hutter, PED-ANOVA, IJCAI 2023, arXiv 2304.10255, as Optuna has it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

Row = Mapping[str, Any]
"""A trial as plain data: "candidate" with its "requests", "flops", "action_error"."""
FEWEST = 20
"""Of fewer candidates nothing can be said."""
_RANGES = 4
"""So many ranges a number falls into that took many values."""
_ABSENT = "–"


def importance(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return "work" and "action error" -> choice -> its share, the largest first; empty of too few trials.

    Args:
        rows: of all trials; those whose work or action error is not known are left out.
    """
    known = [row for row in rows if row["flops"] and row["action_error"] is not None]
    if len(known) < FEWEST:
        return {}
    choices = _choices([row["candidate"]["requests"] for row in known])
    if not choices:
        return {}
    targets: dict[str, Callable[[Row], float]] = {
        "work": lambda row: float(row["flops"]),
        "action error": lambda row: float(row["action_error"]),
    }
    return {name: _shares(choices, [target(row) for row in known]) for name, target in targets.items()}


def _choices(requests: Sequence[Sequence[tuple[str, Mapping[str, Any]]]]) -> dict[str, list[str]]:
    """Choice -> what each candidate has; those in which all are alike are left out."""
    found: dict[str, list[str]] = {}
    of = [{kind: dict(options) for kind, options in one} for one in requests]
    for kind in sorted({kind for one in of for kind in one}):
        found[kind] = ["there" if kind in one else _ABSENT for one in of]
        for option in sorted({name for one in of for name in one.get(kind, {})}):
            found[f"{kind}.{option}"] = _ranged([one.get(kind, {}).get(option) for one in of])
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _ranged(values: Sequence[Any]) -> list[str]:
    """Values in words; numbers of many values by the range they fall into."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(set(numbers)) <= 2 * _RANGES:
        return [_ABSENT if value is None else f"{value}" for value in values]
    bounds = np.quantile(numbers, np.linspace(0, 1, _RANGES + 1)[1:-1])
    return [f"range {np.searchsorted(bounds, value)}" if value in numbers else _ABSENT for value in values]


def _shares(choices: Mapping[str, Sequence[str]], values: Sequence[float]) -> dict[str, float]:
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(sorted(set(found))) for name, found in choices.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study()
        study.add_trials(
            [
                create_trial(
                    params={name: found[i] for name, found in choices.items()},
                    distributions=distributions,
                    value=value,
                )
                for i, value in enumerate(values)
            ]
        )
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: round(float(share), 4) for name, share in found.items()}
