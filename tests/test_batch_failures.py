"""`hdcrf batch` lists what it could not do, and refuses what it cannot."""

import json
import os
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_folder import (
    HEIGHT,
    LABELS,
    STEMS,
    WIDTH,
    contents,
    counts,
    finished,
    invoke,
    refuse,
    succeed,
)

from hdcrf import machine
from hdcrf.commands import batch as command_batch
from hdcrf.folders import refinement, settings
from hdcrf.folders.manifest import MANIFEST
from hdcrf.folders.pairs import Pair
from hdcrf.folders.settings import Settings


class TestFailures:
    def test_damaged_files(self, folders):
        Path("images/a0.png").write_bytes(Path("images/a0.png").read_bytes()[:200])
        Path("probabilities/a2.npy").write_bytes(Path("probabilities/a2.npy").read_bytes()[:500])
        np.save("probabilities/a4.npy", np.full((HEIGHT, WIDTH, LABELS), 0.9))
        result = succeed(code=1)
        assert counts(result) == (3, 0)
        assert set(contents()) == {"a1.png", "a3.png", "a5.png"}
        first, *lines = result.stderr.splitlines()
        assert first == "3 of 6 images failed:"
        assert [line.split(":")[0] for line in lines] == ["  a0", "  a2", "  a4"]
        assert "image images/a0.png cannot be read: " in lines[0]
        assert "prediction probabilities/a2.npy cannot be read: it is damaged" in lines[1]
        assert "prediction probabilities/a4.npy: `probabilities` must sum to 1" in lines[2]

    def test_all_damaged(self, folders):
        for stem in STEMS:
            Path(f"images/{stem}.png").write_bytes(b"")
        outputs = ("--scores", "s.csv", "--scores", "s.json", "--report", "r.html")
        result = succeed("--ground-truth", "truth", *outputs, code=1)
        assert "6 of 6 images failed" in result.stderr
        assert len(json.loads(Path("s.json").read_text())["failures"]) == 6
        assert contents() == {}

    def test_damaged_truth_costs_the_score_alone(self, folders):
        Path("truth/a3.png").write_bytes(b"no picture")
        result = succeed("--ground-truth", "truth", "--scores", "s.json", code=1)
        assert counts(result) == (6, 0)
        assert "  a3: ground truth truth/a3.png is not a picture" in result.stderr
        assert counts(succeed("--ground-truth", "truth", code=1)) == (0, 6)

    def test_a_kept_image_that_cannot_be_scored_is_kept(self, folders, monkeypatch):
        succeed()
        read = settings.read_prediction

        def fail(path, *arguments, **options):
            if path.stem == "a1":
                raise MemoryError
            return read(path, *arguments, **options)

        monkeypatch.setattr(settings, "read_prediction", fail)
        result = succeed("--ground-truth", "truth", code=1)
        assert counts(result) == (0, 6)
        assert "a1: image images/a1.png: out of memory" in result.stderr

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (MemoryError(), "a1: image images/a1.png: out of memory; scale it down, or use fewer --workers"),
            (
                RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
                "a1: image images/a1.png: out of m",
            ),
            (KeyError("odd"), "a1: image images/a1.png: KeyError: 'odd'"),
        ],
    )
    def test_whatever_befalls_an_image_is_its_own(self, error, message, folders, monkeypatch):
        read = settings.read_prediction

        def fail(path, *arguments, **options):
            if path.stem == "a1":
                raise error
            return read(path, *arguments, **options)

        monkeypatch.setattr(settings, "read_prediction", fail)
        result = succeed(code=1)
        assert message in result.stderr
        assert counts(result) == (5, 0)

    def test_no_space_ends_it_all(self, folders, monkeypatch):
        write = refinement.whole_files

        def fail(paths):
            if paths[0].stem == "a3":
                raise OSError(28, "No space left on device", str(paths[0]))
            return write(paths)

        monkeypatch.setattr(refinement, "whole_files", fail)
        result = invoke("--workers", 1)
        assert result.exit_code == 1
        assert "cannot write the results: [Errno 28] No space left on device: 'out/a3.png'; " in result.stderr
        kept = finished()
        assert f"{kept} of 6 images are finished, and the same command goes on with the rest" in result.stderr
        assert set(os.listdir("out")) == {*contents(), MANIFEST}
        monkeypatch.undo()
        os.chdir(folders)
        assert counts(succeed()) == (6 - kept, kept)

    def test_no_place_for_the_report(self, folders, monkeypatch):
        """The images are done, so that what became of them is said."""

        def full(paths):
            raise OSError(28, "No space left on device", str(paths[0]))

        monkeypatch.setattr(command_batch, "whole_files", full)
        result = invoke("--ground-truth", "truth", "--report", "r.html")
        assert result.exit_code == 1
        assert (
            "cannot write the results: [Errno 28] No space left on device: 'r.html'; 6 of 6" in result.stderr
        )
        assert "output: out (6 images, 6 refined and 0 kept)" in result.stdout
        assert "mean IoU" in result.stdout
        assert not os.path.exists("r.html")

    def test_an_error_while_results_are_taken_is_the_one_that_is_raised(self):
        taken = []

        def take(result):
            taken.append(result)
            raise OSError(28, f"at {result}")

        tasks = [partial(str, index) for index in range(8)]
        with pytest.raises(OSError, match="at 0"):
            refinement.run_in_threads(tasks, 1, 1, take, lambda: None)
        assert len(taken) == len(set(taken))

    def test_images_at_work_are_given_up(self, folders):
        """An iteration takes some 0.1 ms here, so that a million of them would take minutes."""
        begun = threading.Event()
        work = refinement.Refinement(
            Settings({"iterations": 1_000_000, "compatibility": "potts"}, 0.7, ()),
            torch.device("cpu"),
            lambda stem: Path(f"{stem}.png"),
            memory=None,
            bytes_a_pixel=1,
            ignore=None,
        )
        check = work._check_stop
        work._check_stop = lambda done: (begun.set(), check(done))
        pair = Pair("a0", Path("images/a0.png"), Path("probabilities/a0.npy"), None)
        results = []

        def interrupt(result):
            raise KeyboardInterrupt

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            refinement.run_in_threads(
                [lambda: results.append(work.refine(pair)), begun.wait], 2, 1, interrupt, work.stop
            )
        assert begun.is_set()
        assert results == []
        assert time.monotonic() - began < 20
        assert not os.path.exists("a0.png")

    @pytest.mark.skipif(os.name != "posix", reason="Windows has no such names")
    def test_names_that_would_colour_the_terminal(self, folders):
        stem = "a\x1b[31mred\r"
        os.rename("images/a0.png", f"images/{stem}.png")
        os.rename("probabilities/a0.npy", f"probabilities/{stem}.npy")
        Path(f"images/{stem}.png").write_bytes(b"damaged")
        errors = succeed(code=1).stderr
        assert "  a?[31mred?: image images/a?[31mred?.png is not a picture" in errors
        assert "\x1b" not in errors

    def test_too_large_for_the_memory(self, folders, monkeypatch):
        monkeypatch.setattr(machine, "memory_of", lambda device: 470 * 500)
        result = succeed(code=1)
        assert "has 36 x 24 = 0 megapixels, more than the 0.0004 that can be handled" in result.stderr


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--scores", "s.csv"), "--scores goes with --ground-truth"),
            (("--ignore", "0"), "--ignore goes with --ground-truth"),
            (("--gt-prob", "0.9"), "--gt-prob goes with predictions in PNG"),
            (("--unknown", "9"), "--unknown goes with predictions in PNG"),
            (("--ground-truth", "no"), "ground truth no does not exist"),
            (("--ground-truth", "images"), "is also the folder of the images"),
            (("--ground-truth", "truth", "--scores", "s.txt"), "must end in .csv or .json"),
            (("--ground-truth", "truth", "--scores", "a.csv", "--scores", "b.csv"), "once for .csv and once"),
            (("--report", "r.pdf"), "--report r.pdf must end in .html"),
            (("--report", "no/r.html"), "does not exist; make it first"),
            (("--compatibility", "no.npy"), "compatibility no.npy does not exist"),
            (("--device", "tpu"), "must be cpu, cuda"),
            (("--workers", "0"), "0 is not in the range"),
            (("--iterations", "-1"), "-1 is not in the range"),
        ],
    )
    def test_options(self, words, message, folders):
        assert message in refuse(*words)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("images", "--output images is the folder of the images; name another"),
            ("probabilities/../probabilities", "is the folder of the predictions; name another"),
            ("truth", "is the folder of the ground truth"),
            ("no/out", "does not exist; make it first"),
            ("images/a0.png", "is a file; name a folder"),
            ("", "the name is empty"),
            ("o" * 300, "cannot be made"),
        ],
    )
    def test_outputs(self, output, message, folders):
        assert message in refuse("--ground-truth", "truth", output=output)

    def test_files_that_no_run_has_made(self, folders):
        """Such as those of a folder of labels, given as the output by mistake."""
        before = {path: path.read_bytes() for path in Path("labels").iterdir()}
        message = refuse(output="labels")
        assert "labels holds 6 files that would be replaced, such as a0.png, and no run of this" in message
        assert {path: path.read_bytes() for path in Path("labels").iterdir()} == before
        assert counts(succeed("--restart", output="labels")) == (6, 0)
        assert counts(succeed(output="labels")) == (0, 6)

    @pytest.mark.skipif(os.name != "posix", reason="not every Windows user may make links")
    def test_links_to_inputs(self, folders):
        os.mkdir("out")
        os.symlink("../labels/a2.png", "out/a2.png")
        before = Path("labels/a2.png").read_bytes()
        for words in ((), ("--restart",)):
            message = refuse(*words, predictions="labels")
            assert "--output: out/a2.png is the same file as the prediction labels/a2.png; name" in message
        assert Path("labels/a2.png").read_bytes() == before
        os.remove("out/a2.png")
        succeed(predictions="labels")
        os.remove("truth/a3.png")
        os.symlink("../out/a3.png", "truth/a3.png")
        assert "is the same file as the ground truth truth/a3.png" in refuse(
            "--ground-truth", "truth", predictions="labels"
        )

    def test_folders(self, folders):
        assert "predictions no does not exist" in refuse(predictions="no")
        assert "is also the folder of the images" in refuse(predictions="images")
        os.mkdir("none")
        assert "predictions none is empty" in refuse(predictions="none")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_no_permission(self, folders):
        os.mkdir("out", 0o500)
        assert "nothing can be written in it" in refuse()

    def test_record_that_is_none(self, folders):
        os.makedirs(f"out/{MANIFEST}")
        assert "--output out: nothing can be written in it" in refuse()

    def test_a_report_in_the_output_folder(self, folders):
        succeed("--report", "out/r.html", "--ground-truth", "truth", "--scores", "out/s.json")
        assert counts(succeed()) == (0, 6)
