"""The search for parameters by Optuna: a tree-structured Parzen estimator, with pruning.

Reference: Bergstra, Bardenet, Bengio and Kégl, Algorithms for Hyper-Parameter Optimization, NIPS 2011; Akiba
et al., Optuna: A Next-generation Hyperparameter Optimization Framework, KDD 2019.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hdcrf.files import InputError, Note, ignore, import_extra, reason
from hdcrf.tuning.budget import Budget, Found
from hdcrf.tuning.objective import RANGES, Parameters, rounded, within

__all__ = ["search"]

_RANDOM_TRIALS = 10
_NAME = "hdcrf tune"
_SETTINGS = "settings"
_FIRST_WORDS = b'{"op_code":'

Score = Callable[[Parameters, Callable[[int, float], bool]], float | None]
"""Returns the score of parameters, to be made large; None if the function that it is given stopped it."""


def search(
    score: Score,
    starts: Sequence[Parameters],
    budget: Budget,
    *,
    seed: int,
    storage: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], object] | None = None,
    note: Note = ignore,
) -> Found:
    """Search for the parameters with the highest score.

    The first trials are the starts, then ten random ones, then those that the estimator suggests. A trial
    that after a part of the images is worse than the median of those that were not stopped is stopped
    there.

    Args:
        score: Of parameters.
        starts: Parameters to try first, which are always tried.
        budget: How long to search.
        seed: Of the search. Each trial follows from it and from the trials before, in whichever call they
            were made.
        storage: A file that keeps the trials, and from which a later call goes on.
        settings: What the scores depend on: trials that were made under others are refused.
        progress: Called with the number of trials and the best score, after each.
        note: Called with a sentence where trials of earlier calls are found.

    Raises:
        InputError: If Optuna is not installed, or the storage is something else, damaged, or of other
            settings.
    """
    optuna = import_extra("optuna", "hdcrf tune --method optuna", "tune")
    began = time.monotonic()
    with _silent(optuna):
        study = _study(optuna, storage, settings or {})
        earlier = _finished(optuna, study)
        if earlier:
            note(f"storage {storage}: going on after {len(earlier)} trials")
        distributions = {
            name: optuna.distributions.FloatDistribution(low, high, log=True)
            for name, (low, high) in RANGES.items()
        }
        for parameters in starts[len(earlier) :]:
            _add_start(optuna, study, score, parameters, distributions)
        trials = _finished(optuna, study)
        while not budget.is_used(len(trials), began):
            # For each trial anew, so that it does not matter in how many calls they are made.
            study.sampler = optuna.samplers.TPESampler(
                seed=(seed * 1_000_003 + len(trials)) % (1 << 32), n_startup_trials=_RANDOM_TRIALS
            )
            _try(optuna, study, score, distributions)
            trials = _finished(optuna, study)
            if progress is not None:
                progress(len(trials), study.best_value)
        best = study.best_trial
        number = 1 + [trial.number for trial in trials].index(best.number)
        parameters = best.user_attrs["parameters"]
        return Found(parameters, best.value, number, len(trials), len(earlier))


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
            user_attrs={"parameters": parameters},
        )
    )


def _try(optuna: Any, study: Any, score: Score, distributions: Mapping[str, Any]) -> None:
    """Make one more trial."""
    trial = study.ask(fixed_distributions=distributions)
    parameters = rounded(trial.params)
    trial.set_user_attr("parameters", parameters)

    def stop(step: int, value: float) -> bool:
        trial.report(value, step)
        return bool(trial.should_prune())

    try:
        value = score(parameters, stop)
    except InputError:  # such as numbers out of range, far from where the starts are
        value = None
    state = optuna.trial.TrialState.PRUNED if value is None else None
    study.tell(trial, value, state=state, skip_if_finished=True)


def _finished(optuna: Any, study: Any) -> list[Any]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=states))


def _study(optuna: Any, path: Path | None, settings: Mapping[str, Any]) -> Any:
    """Return a new study, or the one that a file keeps."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_RANDOM_TRIALS)
    if path is None:
        return optuna.create_study(direction="maximize", pruner=pruner)
    _mend(path)
    journal = optuna.storages.journal
    # The other lock is a symbolic link, which not every Windows user may make.
    backend = journal.JournalFileBackend(str(path), lock_obj=journal.JournalFileOpenLock(str(path)))
    try:
        kept_by = optuna.storages.JournalStorage(backend)
        if _NAME in optuna.get_all_study_names(kept_by):
            study = optuna.load_study(study_name=_NAME, storage=kept_by, pruner=pruner)
        else:
            study = optuna.create_study(
                study_name=_NAME, storage=kept_by, pruner=pruner, direction="maximize"
            )
    except OSError:
        raise
    except Exception as error:  # what it raises on a broken file depends on how it is broken
        raise InputError(
            f"storage {path} cannot be read: {reason(error)}; it may be damaged, name a new file"
        ) from error
    kept = study.user_attrs.get(_SETTINGS)
    wanted = json.loads(json.dumps(settings))
    if kept is None:
        study.set_user_attr(_SETTINGS, wanted)
    elif differing := [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]:
        raise InputError(
            f"storage {path} is of a search with other {', '.join(differing)}; name a new file for this one"
        )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process was killed
    return study


def _mend(path: Path) -> None:
    """Check that a file is a journal, and take off a last line that a killed process left half-written."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        if file.read(len(_FIRST_WORDS)) != _FIRST_WORDS:
            raise InputError(f"storage {path} is not a file that `hdcrf tune` made; name another")
        file.seek(0)
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        if end < os.path.getsize(path):
            file.truncate(end)


@contextmanager
def _silent(optuna: Any) -> Iterator[None]:
    """Keep Optuna from logging each trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
