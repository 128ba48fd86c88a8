"""The search for parameters by Optuna: a tree-structured Parzen estimator, with pruning.

Reference: Bergstra, Bardenet, Bengio and Kégl, Algorithms for Hyper-Parameter Optimization, NIPS 2011; Akiba
et al., Optuna: A Next-generation Hyperparameter Optimization Framework, KDD 2019.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hdcrf.files import import_extra
from hdcrf.tuning.budget import Budget, Found
from hdcrf.tuning.objective import RANGES, Parameters, RefusedError, rounded, within
from hdcrf.tuning.storage import PARAMETERS, finished

__all__ = ["search"]

_RANDOM_TRIALS = 10

Score = Callable[[Parameters, Callable[[int, float], bool]], float | None]
"""Returns the score of parameters, to be made large; None if the function that it is given stopped it."""


def search(
    study: Any,
    score: Score,
    starts: Sequence[Parameters],
    budget: Budget,
    *,
    seed: int,
    progress: Callable[[int, float], object] | None = None,
) -> Found:
    """Search for the parameters with the highest score.

    The first trials are the starts, then ten random ones, then those that the estimator suggests. A trial
    that after a part of the images is worse than the median of those that were not stopped is stopped
    there.

    Args:
        study: As `open_study` yields it: the search goes on after the trials that it has.
        score: Of parameters.
        starts: Parameters to try first, which are always tried.
        budget: How long to search.
        seed: Of the search. Each trial follows from it and from the trials before, in whichever call they
            were made.
        progress: Called with the number of trials and the best score, after each.

    Raises:
        OSError: If the study cannot be kept.
        Exception: Whatever the score raises, but for a `RefusedError`: that stops the trial alone.
    """
    optuna = import_extra("optuna", "hdcrf tune --method optuna", "tune")
    began = time.monotonic()
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_RANDOM_TRIALS)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process was killed
    distributions = {
        name: optuna.distributions.FloatDistribution(low, high, log=True)
        for name, (low, high) in RANGES.items()
    }
    earlier = len(finished(study))
    for parameters in starts[earlier:]:
        _add_start(optuna, study, score, parameters, distributions)
    trials = finished(study)
    while not budget.is_used(len(trials), began):
        # For each trial anew, so that it does not matter in how many calls they are made.
        study.sampler = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + len(trials)) % (1 << 32), n_startup_trials=_RANDOM_TRIALS
        )
        _try(optuna, study, score, distributions)
        trials = finished(study)
        if progress is not None:
            progress(len(trials), study.best_value)
    best = study.best_trial
    number = 1 + [trial.number for trial in trials].index(best.number)
    return Found(best.user_attrs[PARAMETERS], best.value, number, len(trials), earlier)


def _add_start(
    optuna: Any, study: Any, score: Score, parameters: Parameters, distributions: Mapping[str, Any]
) -> None:
    """Score parameters that were not suggested, and tell the study as what is nearest in its ranges."""
    passed: dict[int, float] = {}

    def keep(step: int, value: float) -> bool:
        passed[step] = value
        return False

    value = score(parameters, keep)
    study.add_trial(
        optuna.trial.create_trial(
            params=within(parameters),
            distributions=dict(distributions),
            value=value,
            intermediate_values=passed,
            user_attrs={PARAMETERS: parameters},
        )
    )


def _try(optuna: Any, study: Any, score: Score, distributions: Mapping[str, Any]) -> None:
    """Make one more trial."""
    trial = study.ask(fixed_distributions=distributions)
    parameters = rounded(trial.params)
    trial.set_user_attr(PARAMETERS, parameters)

    def stop(step: int, value: float) -> bool:
        trial.report(value, step)
        return bool(trial.should_prune())

    try:
        value = score(parameters, stop)
    except RefusedError:  # such as numbers out of range, far from where the starts are
        value = None
    state = optuna.trial.TrialState.PRUNED if value is None else None
    study.tell(trial, value, state=state, skip_if_finished=True)
