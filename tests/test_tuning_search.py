"""The search for parameters by Optuna: what it tries, when it ends, and that it goes on where it was."""

import itertools
import json
import math

import numpy as np
import pytest

from hdcrf.files import InputError
from hdcrf.tuning import search as searching
from hdcrf.tuning.budget import Budget
from hdcrf.tuning.objective import DEFAULTS
from hdcrf.tuning.search import search

BEST = {**DEFAULTS, "appearance_weight": 2.0, "appearance_sigma_xy": 20.0, "smoothness_sigma": 1.0}


def bowl(best):
    """Return a score with its maximum, 0, at given parameters; in five steps that can be stopped."""

    def score(parameters, stop):
        value = -sum(math.log(max(parameters[name], 1e-3) / best[name]) ** 2 for name in best)
        return None if any(stop(step, value) for step in range(1, 6)) else value

    return score


class TestSearch:
    def search(self, trials, seed=0, starts=(DEFAULTS,), score=None, **options):
        return search(score or bowl(BEST), starts, Budget(trials, None), seed=seed, **options)

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
        found = search(score, [start, DEFAULTS], Budget(1, 1e-9), seed=0)
        assert tried == [start, DEFAULTS]
        assert found.parameters in tried

    def test_time_ends_it(self, monkeypatch):
        clock = itertools.count()
        monkeypatch.setattr(searching.time, "monotonic", lambda: next(clock))
        assert search(bowl(BEST), [DEFAULTS], Budget(None, 5), seed=0).trials == 5
        clock = itertools.count()
        assert search(bowl(BEST), [DEFAULTS], Budget(3, 50), seed=0).trials == 3

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

    def test_what_cannot_be_computed_is_passed_over(self):
        failures = []

        def score(parameters, stop):
            if parameters != DEFAULTS and parameters["appearance_weight"] > 1:
                failures.append(parameters)
                raise InputError("out of range")
            return bowl(BEST)(parameters, stop)

        found = self.search(20, score=score)
        assert failures
        assert found.trials == 20

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
    def search(self, trials, path, notes=None, settings=None, score=None):
        return search(
            score or bowl(BEST),
            [DEFAULTS],
            Budget(trials, None),
            seed=0,
            storage=path,
            settings=settings or {"seed": 0, "images": "abc"},
            note=(notes if notes is not None else []).append,
        )

    def test_two_calls_are_as_one(self, tmp_path):
        path, notes = tmp_path / "s.log", []
        self.search(12, path, notes)
        assert notes == []
        found = self.search(25, path, notes)
        assert notes == [f"storage {path}: going on after 12 trials"]
        once = search(bowl(BEST), [DEFAULTS], Budget(25, None), seed=0)
        assert (found.parameters, found.score, found.number) == (once.parameters, once.score, once.number)
        assert (found.trials, found.earlier) == (25, 12)
        assert [name.name for name in tmp_path.iterdir()] == ["s.log"]

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
            self.search(25, path, score=score)
        with open(path, "ab") as file:
            file.write(torn)
        found = self.search(25, path)
        once = search(bowl(BEST), [DEFAULTS], Budget(25, None), seed=0)
        assert (found.parameters, found.number, found.trials) == (once.parameters, once.number, once.trials)

    def test_enough_trials_are_no_more(self, tmp_path):
        first = self.search(12, tmp_path / "s.log")
        again = self.search(5, tmp_path / "s.log")
        assert (again.parameters, again.trials, again.earlier) == (first.parameters, 12, 12)

    def test_of_other_settings(self, tmp_path):
        self.search(3, tmp_path / "s.log")
        before = (tmp_path / "s.log").read_bytes()
        with pytest.raises(
            InputError, match=r"s\.log is of a search with other images, ignore; name a new file"
        ):
            self.search(3, tmp_path / "s.log", settings={"seed": 0, "images": "x", "ignore": 3})
        assert (tmp_path / "s.log").read_bytes() == before

    def test_other_files(self, tmp_path):
        path = tmp_path / "s.log"
        path.write_text("a log of something else\n")
        with pytest.raises(InputError, match="is not a file that `hdcrf tune` made"):
            self.search(3, path)
        assert path.read_text() == "a log of something else\n"
        path.write_text('{"op_code":0,"worker_id":\n{"op_code":0}\n')
        with pytest.raises(InputError, match=r"cannot be read.*; it may be damaged, name a new file"):
            self.search(3, path)

    def test_an_empty_file_is_a_new_one(self, tmp_path):
        (tmp_path / "s.log").touch()
        assert self.search(3, tmp_path / "s.log").trials == 3
        lines = (tmp_path / "s.log").read_text().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
