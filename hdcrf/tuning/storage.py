"""Where trials are kept: a study of Optuna in memory, or in a file that one process has at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from hdcrf.files import InputError, Note, ignore, import_extra, lock_file, many, reason
from hdcrf.tuning.objective import RANGES

__all__ = ["PARAMETERS", "finished", "open_study"]

PARAMETERS = "parameters"
"""The attribute of a trial with the parameters that were scored: rounded, or out of the ranges."""

_NAME = "hdcrf tune"
_SETTINGS = "settings"
_FIRST_WORDS = b'{"op_code":'


@contextmanager
def open_study(
    path: Path | None = None, settings: Mapping[str, Any] | None = None, note: Note = ignore
) -> Iterator[Any]:
    """Yield a new study, or the one that a file keeps. No other process has the file until the block ends.

    Args:
        path: The file; None keeps the study in memory.
        settings: What the scores depend on: trials that were made under others are refused.
        note: Called with a sentence where trials of earlier calls are found.

    Raises:
        InputError: If Optuna is not installed, or the file is something else, damaged, in use, or of other
            settings.
        OSError: If the file cannot be written, also in the block.
    """
    optuna = import_extra("optuna", "hdcrf tune --method optuna", "tune")
    with _silent(optuna):
        if path is None:
            yield optuna.create_study(direction="maximize")
            return
        try:
            file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InputError(f"storage {path} cannot be opened: {reason(error)}; name another") from error
        with file:
            if not lock_file(file):
                raise InputError(
                    f"storage {path} is in use by another run of this command; wait for it, or name another"
                )
            study = _study(optuna, path, _Journal(path, file))
            _use_settings(study, path, json.loads(json.dumps(settings or {})))
            if earlier := finished(study):
                note(f"storage {path}: going on after {many(len(earlier), 'trial')}")
            yield study


def finished(study: Any) -> list[Any]:
    """Return the trials of a study that were finished or stopped, in the order they were made."""
    state = import_extra("optuna", "hdcrf tune --method optuna", "tune").trial.TrialState
    return list(study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED)))


class _Journal:
    """A file of what was done to a study, a line of JSON each, all of which stays in memory too.

    Optuna's own class would lock the file by another one beside it for each line. That one is left behind
    where a process is killed, and holds the next one up for half a minute.

    Args:
        path: The file's name, for messages.
        file: The file, open for reading and appending without a buffer, and locked.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path, self._file = path, file
        file.seek(0)
        content = file.read()
        if content and not content.startswith(_FIRST_WORDS):
            raise _foreign(path)
        self._size = content.rfind(b"\n") + 1
        try:
            self._lines = [json.loads(line) for line in content[: self._size].splitlines()]
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error) from error
        if self._size < len(content):  # its writer was killed
            file.truncate(self._size)

    def read_logs(self, log_number_from: int) -> Sequence[dict[str, Any]]:
        """Return the lines from one on."""
        return self._lines[log_number_from:]

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Add lines.

        Raises:
            OSError: If they cannot be written, which names the file.
        """
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        rest = "".join(f"{line}\n" for line in lines).encode()
        written = self._size + len(rest)
        try:
            while rest:  # a full disk takes a part at first
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(f"storage {self._path} cannot be written: {reason(error)}") from error
        self._size = written
        self._lines += map(json.loads, lines)


def _study(optuna: Any, path: Path, journal: _Journal) -> Any:
    """Return the study of a journal, or a new one in it."""
    try:
        storage = optuna.storages.JournalStorage(journal)
        names = optuna.get_all_study_names(storage)
        if not names:
            return optuna.create_study(study_name=_NAME, storage=storage, direction="maximize")
        study = optuna.load_study(study_name=_NAME, storage=storage) if _NAME in names else None
        ours = study is not None and _is_ours(optuna, study)
    except OSError:
        raise
    except Exception as error:  # what it raises on a broken file depends on how it is broken
        raise _damaged(path, error) from error
    if study is None or not ours:
        raise _foreign(path)
    return study


def _is_ours(optuna: Any, study: Any) -> bool:
    """Return whether a study is as `search` makes it, and not another tool's of the same name."""
    trials = finished(study)
    maximizes = study.directions == [optuna.study.StudyDirection.MAXIMIZE]
    known = isinstance(study.user_attrs.get(_SETTINGS), dict) or not trials
    return maximizes and known and all(_has_parameters(trial) for trial in trials)


def _has_parameters(trial: Any) -> bool:
    given = trial.user_attrs.get(PARAMETERS)
    return (
        isinstance(given, dict)
        and given.keys() == RANGES.keys()
        and all(isinstance(value, int | float) for value in given.values())
    )


def _use_settings(study: Any, path: Path, wanted: dict[str, Any]) -> None:
    """Give a new study its settings; refuse one of others."""
    kept = study.user_attrs.get(_SETTINGS)
    if kept is None:
        study.set_user_attr(_SETTINGS, wanted)
    elif differing := [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]:
        raise InputError(
            f"storage {path} is of a search with other {', '.join(differing)}; name a new file for this one"
        )


def _foreign(path: Path) -> InputError:
    return InputError(f"storage {path} is not a file that `hdcrf tune` made; name another")


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"storage {path} cannot be read: {reason(error)}; it may be damaged, name a new file")


@contextmanager
def _silent(optuna: Any) -> Iterator[None]:
    """Keep Optuna from logging each trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
