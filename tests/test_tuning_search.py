"""The search for parameters by Optuna: what it tries, when it ends, and that it goes on where it was."""

import itertools
import json
import math
import time

import numpy as np
import pytest

from hdcrf.files import InputError
from hdcrf.tuning import search as searching
from hdcrf.tuning.budget import Budget
from hdcrf.tuning.objective import DEFAULTS, RefusedError
from hdcrf.tuning.search import search
from hdcrf.tuning.storage import open_study

BEST = {**DEFAULTS, "appearance_weight": 2.0, "appearance_sigma_xy": 20.0, "smoothness_sigma": 1.0}


def bowl(best):
    """Return a score with its maximum, 0, at given parameters; in five steps that can be stopped."""

    def score(parameters, stop):
        value = -sum(math.log(max(parameters[name], 1e-3) / best[name]) ** 2 for name in best)
        return None if any(stop(step, value) for step in range(1, 6)) else value

    return score


def searched(score, starts, budget, *, seed=0, progress=None, kept=(None, None)):
    with open_study(*kept) as study:
        return search(study, score, starts, budget, seed=seed, progress=progress)


class TestSearch:
    def search(self, trials, seed=0, starts=(DEFAULTS,), score=None, **options):
        return searched(score or bowl(BEST), starts, Budget(trials, None), seed=seed, **options)

    def test_finds_a_maximum(self):
        start = bowl(BEST)(DEFAULTS, lambda *_: False)
        found = self.search(60)
        assert start < -5
        # -0.48 with this seed, -1.1 the worst of seeds 0 to 9.
        assert found.score > -1.5
        assert found.score == bowl(BEST)(found.parameters, lambda *_: False)
        assert (found.trials, found.earlier) == (60, 0)
        assert 1 <= found.number <= 60

    def test_is_reproducible(self):
        first, second, other = self.search(20), self.search(20), self.search(20, seed=1)
        assert first == second
        assert first.parameters != other.parameters

    def test_every_trial_is_another(self):
        """Those before the estimator has seen enough are drawn, each anew."""
        tried = []

        def score(parameters, stop):
            tried.append(tuple(parameters.values()))
            return bowl(BEST)(parameters, stop)

        self.search(12, score=score)
        assert len(set(tried)) == 12

    def test_starts_are_tried_whatever_the_budget(self):
        tried = []

        def score(parameters, stop):
            tried.append(parameters)
            return bowl(BEST)(parameters, stop)

        start = {**DEFAULTS, "smoothness_weight": 0.0}
        found = searched(score, [start, DEFAULTS], Budget(1, 1e-9))
        assert tried == [start, DEFAULTS]
        assert found.parameters in tried

    def test_time_ends_it(self, monkeypatch):
        clock = itertools.count()
        monkeypatch.setattr(searching.time, "monotonic", lambda: next(clock))
        assert searched(bowl(BEST), [DEFAULTS], Budget(None, 5)).trials == 5
        clock = itertools.count()
        assert searched(bowl(BEST), [DEFAULTS], Budget(3, 50)).trials == 3

    def test_trials_worse_than_the_median_are_stopped(self):
        finished, stopped = [], []

        def score(parameters, stop):
            value = np.random.default_rng(round(1e6 * parameters["appearance_weight"])).random()
            is_worse = len(finished) >= 10 and value < np.median(finished)
            assert stop(1, value) == is_worse
            (stopped if is_worse else finished).append(value)
            return None if is_worse else value

        found = self.search(60, score=score)
        assert len(stopped) > 10
        assert len(finished) > 10
        assert found.score == max(finished)

    def test_what_the_model_refuses_is_passed_over(self):
        failures = []

        def score(parameters, stop):
            if parameters != DEFAULTS and parameters["appearance_weight"] > 1:
                failures.append(parameters)
                raise RefusedError("out of range")
            return bowl(BEST)(parameters, stop)

        found = self.search(20, score=score)
        assert failures
        assert found.trials == 20

    def test_what_cannot_be_read_ends_it(self):
        def score(parameters, stop):
            if parameters != DEFAULTS:
                raise InputError("image 3.png cannot be read")
            return bowl(BEST)(parameters, stop)

        with pytest.raises(InputError, match=r"^image 3\.png cannot be read$"):
            self.search(20, score=score)

    def test_progress(self):
        seen = []
        found = self.search(5, progress=lambda *arguments: seen.append(arguments))
        assert [trials for trials, _ in seen] == [2, 3, 4, 5]
        assert seen[-1][1] == found.score

    def test_says_nothing_of_its_own(self, capfd):
        optuna = pytest.importorskip("optuna")
        before = optuna.logging.get_verbosity()
        self.search(3)
        assert capfd.readouterr() == ("", "")
        assert optuna.logging.get_verbosity() == before

    def test_without_optuna(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "optuna", None)
        with pytest.raises(InputError, match=r'needs optuna: pip install "hdcrf\[tune\]"'):
            self.search(3)


class TestStorage:
    def search(self, trials, path, score=None):
        settings = {"seed": 0, "images": "abc"}
        return searched(score or bowl(BEST), [DEFAULTS], Budget(trials, None), kept=(path, settings))

    def refuse(self, path, message, settings=None):
        """Check that a file is refused, and left as it was."""
        before = path.read_bytes()
        given = {"seed": 0, "images": "abc"} if settings is None else settings
        with pytest.raises(InputError, match=message), open_study(path, given):
            pass
        assert path.read_bytes() == before

    def test_two_calls_are_as_one(self, tmp_path):
        path = tmp_path / "s.log"
        self.search(12, path)
        found = self.search(25, path)
        once = searched(bowl(BEST), [DEFAULTS], Budget(25, None))
        assert (found.parameters, found.score, found.number) == (once.parameters, once.score, once.number)
        assert (found.trials, found.earlier) == (25, 12)
        assert [name.name for name in tmp_path.iterdir()] == ["s.log"]

    def test_earlier_trials_are_noted(self, tmp_path):
        path, notes = tmp_path / "s.log", []
        for _ in range(2):
            with open_study(path, note=notes.append) as study:
                search(study, bowl(BEST), [DEFAULTS], Budget(1, None), seed=0)
        assert notes == [f"storage {path}: going on after 1 trial"]

    @pytest.mark.parametrize("torn", [b"", b'{"op_code":6,"worker_id":"12'])
    def test_one_that_was_killed_is_as_one(self, torn, tmp_path):
        """The trial that it was at is made again, and what it was writing is taken off."""
        path = tmp_path / "s.log"
        calls = itertools.count()

        class Killed(BaseException):
            pass

        def score(parameters, stop):
            if next(calls) == 15:
                raise Killed
            return bowl(BEST)(parameters, stop)

        with pytest.raises(Killed):
            self.search(25, path, score)
        with open(path, "ab") as file:
            file.write(torn)
        found = self.search(25, path)
        once = searched(bowl(BEST), [DEFAULTS], Budget(25, None))
        assert (found.parameters, found.number, found.trials) == (once.parameters, once.number, once.trials)
        assert self.search(25, path).earlier == 25

    def test_enough_trials_are_no_more(self, tmp_path):
        first = self.search(12, tmp_path / "s.log")
        again = self.search(5, tmp_path / "s.log")
        assert (again.parameters, again.trials, again.earlier) == (first.parameters, 12, 12)

    def test_optuna_reads_what_is_kept(self, tmp_path):
        """With its own class for such files."""
        optuna = pytest.importorskip("optuna")
        found = self.search(12, tmp_path / "s.log")
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "s.log"))
        study = optuna.load_study(study_name="hdcrf tune", storage=optuna.storages.JournalStorage(backend))
        assert len(study.trials) == 12
        assert study.best_value == found.score

    def test_belongs_to_one_at_a_time(self, tmp_path):
        """To one process, or one call; and it is free again when that one has ended."""
        path = tmp_path / "s.log"
        with open_study(path) as study:
            search(study, bowl(BEST), [DEFAULTS], Budget(3, None), seed=0)
            study.ask()
            self.refuse(path, r"s\.log is in use by another run of this command; wait for it", {})
        with open_study(path) as study:
            assert len(study.trials) == 4

    def test_a_lock_that_is_left_behind(self, tmp_path):
        """One of Optuna's own, which would be waited for."""
        self.search(3, tmp_path / "s.log")
        (tmp_path / "s.log.lock").touch()
        began = time.monotonic()
        assert self.search(5, tmp_path / "s.log").trials == 5
        assert time.monotonic() - began < 20

    def test_a_disk_that_fills_up(self, tmp_path):
        """What was written of a line is taken off by the next call, which goes on."""
        resource = pytest.importorskip("resource")
        path, (before, most) = tmp_path / "s.log", resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, most))
        try:
            with pytest.raises(OSError, match=r"^storage .*s\.log cannot be written: .*File too large"):
                self.search(12, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
        assert path.stat().st_size == 6000
        found = self.search(12, path)
        assert 0 < found.earlier < 12
        assert found.trials == 12

    def test_of_other_settings(self, tmp_path):
        self.search(3, tmp_path / "s.log")
        self.refuse(
            tmp_path / "s.log",
            r"s\.log is of a search with other images, ignore; name a new file",
            {"seed": 0, "images": "x", "ignore": 3},
        )

    def test_other_files(self, tmp_path):
        path = tmp_path / "s.log"
        path.write_text("a log of something else\n")
        self.refuse(path, "is not a file that `hdcrf tune` made")
        for text in ('{"op_code":0,"worker_id":\n{"op_code":0}\n', '{"op_code":99}\n', '{"op_code":4}\n'):
            path.write_text(text)
            self.refuse(path, r"cannot be read.*; it may be damaged, name a new file")
        with pytest.raises(InputError, match=r"cannot be opened: .*; name another"), open_study(tmp_path):
            pass

    @pytest.mark.parametrize("name", ["hdcrf tune", "another"])
    @pytest.mark.parametrize("direction", ["maximize", "minimize"])
    def test_studies_of_other_tools(self, name, direction, tmp_path):
        """Also of one that takes the same name."""
        optuna = pytest.importorskip("optuna")
        path = tmp_path / "s.log"
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        kept_by = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(study_name=name, storage=kept_by, direction=direction)
        if (name, direction) == ("hdcrf tune", "maximize"):
            study.tell(study.ask(), 1.0)
        self.refuse(path, "is not a file that `hdcrf tune` made; name another")

    @pytest.mark.parametrize(
        "given", [None, 3, {"smoothness_sigma": 1.0}, {**DEFAULTS, "smoothness_sigma": "x"}]
    )
    def test_trials_of_other_tools(self, given, tmp_path):
        path = tmp_path / "s.log"
        with open_study(path, {"seed": 0, "images": "abc"}) as study:
            trial = study.ask()
            if given is not None:
                trial.set_user_attr("parameters", given)
            study.tell(trial, 1.0)
        self.refuse(path, "is not a file that `hdcrf tune` made; name another")

    def test_an_empty_file_is_a_new_one(self, tmp_path):
        (tmp_path / "s.log").touch()
        assert self.search(3, tmp_path / "s.log").trials == 3
        lines = (tmp_path / "s.log").read_text().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
