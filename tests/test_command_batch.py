"""`hdcrf batch`: what it writes and says, on how many threads."""

import base64
import io
import json
import os
import re
import sys
import threading
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_folder import (
    COUNT,
    HEIGHT,
    STEMS,
    WIDTH,
    contents,
    counts,
    labels,
    mode,
    refuse,
    succeed,
)
from PIL import Image

import hdcrf
from hdcrf import image_files, machine
from hdcrf.commands.batch import batch
from hdcrf.folders import refinement
from hdcrf.folders.manifest import MANIFEST


class TestResults:
    def test_probabilities(self, folders, inputs):
        result = succeed()
        changed = 0
        for stem, (photo, _, probabilities) in zip(STEMS, inputs, strict=True):
            expected = hdcrf.refine(photo, probabilities=probabilities)
            np.testing.assert_array_equal(labels(stem), expected)
            assert mode(stem) == "P"
            changed += (expected != probabilities.argmax(2)).sum()
        assert sorted(os.listdir("out")) == [*(f"{stem}.png" for stem in STEMS), MANIFEST]
        assert counts(result) == (6, 0)
        assert f"{changed / COUNT / HEIGHT / WIDTH:.1%} of the pixels changed their label" in result.stdout
        assert result.stderr == ""

    def test_labels_keep_their_values_and_palette(self, folders, inputs):
        values, palette = np.array([7, 0, 255]), np.arange(768).astype(np.uint8)
        given = values[inputs[0][2].argmax(2)].astype(np.uint8)
        picture = Image.fromarray(given)
        picture.putpalette(palette.tobytes())
        picture.save("labels/a0.png")
        Image.fromarray(given.astype(np.uint16) * 100).save("labels/a1.png")
        succeed("--gt-prob", 0.6, predictions="labels")
        numbers = np.searchsorted(np.sort(values), given)
        expected = np.sort(values)[hdcrf.refine(inputs[0][0], labels=numbers, gt_prob=0.6)]
        with Image.open("out/a0.png") as refined:
            np.testing.assert_array_equal(np.asarray(refined), expected)
            assert refined.getpalette() == list(palette)
        expected = np.sort(values)[hdcrf.refine(inputs[1][0], labels=numbers, gt_prob=0.6)] * 100
        np.testing.assert_array_equal(labels("a1"), expected)
        assert mode("a1").startswith("I")
        assert mode("a2") == "L"

    def test_unknown_pixels_get_a_label(self, folders, inputs):
        given = inputs[0][2].argmax(2)
        Image.fromarray(np.where(given == 2, 9, given).astype(np.uint8)).save("labels/a0.png")
        for stem in STEMS[1:]:
            os.remove(f"labels/{stem}.png")
        words = ("--ground-truth", "truth", "--scores", "s.json", "--report", "r.html")
        result = succeed("--unknown", 9, "--unknown", 11, *words, predictions="labels")
        expected = hdcrf.refine(inputs[0][0], labels=np.where(given == 2, -1, given), num_labels=2)
        np.testing.assert_array_equal(labels("a0"), expected)
        assert f"{(given == 2).mean():.1%} of the pixels were unknown and got a label" in result.stdout
        changed = (expected != given)[given != 2].mean()
        assert f"{changed:.1%} of the labelled pixels changed their label" in result.stdout
        (image,) = json.loads(Path("s.json").read_text())["images"]
        assert image["changed"] == changed
        uri = re.search('"before":"data:image/png;base64,([^"]+)"', Path("r.html").read_text())[1]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGBA"))
        np.testing.assert_array_equal(shown[..., 3] == 0, given == 2)

    def test_a_result_does_not_depend_on_the_others(self, folders):
        succeed(predictions="labels")
        for stem in STEMS[1:]:
            os.remove(f"images/{stem}.png")
        succeed(predictions="labels", output="alone")
        assert contents("alone")["a0.png"] == contents()["a0.png"]

    def test_one_label_comes_out_as_it_is(self, folders):
        Image.fromarray(np.full((HEIGHT, WIDTH), 200, np.uint8)).save("labels/a0.png")
        result = succeed(predictions="labels")
        assert (labels("a0") == 200).all()
        assert result.stderr == ""

    def test_matrix_says_how_many_labels(self, folders, inputs):
        costs = np.array([[0, 2, 1, 1], [2, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]], np.float32)
        np.save("costs.npy", costs)
        two = np.minimum(inputs[0][2].argmax(2), 1)
        Image.fromarray(two.astype(np.uint8)).save("labels/a0.png")
        Image.fromarray(np.full((HEIGHT, WIDTH), 4, np.uint8)).save("labels/a1.png")
        result = succeed("--compatibility", "costs.npy", predictions="labels", code=1)
        expected = hdcrf.refine(inputs[0][0], labels=two, num_labels=4, compatibility=costs)
        np.testing.assert_array_equal(labels("a0"), expected)
        assert (
            "a1: prediction labels/a1.png has label 4, but there are 4 labels, from 0 to 3" in result.stderr
        )

    def test_options_of_the_model(self, folders, inputs):
        options = {
            "iterations": 3,
            "appearance_weight": 4.0,
            "smoothness_sigma": 2.0,
            "normalization": "none",
        }
        words = [
            str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)
        ]
        succeed(*words, "--include-self")
        expected = hdcrf.refine(inputs[2][0], probabilities=inputs[2][2], exclude_self=False, **options)
        np.testing.assert_array_equal(labels("a2"), expected)

    def test_params(self, folders, inputs):
        Path("p.toml").write_text("iterations = 2\nappearance_weight = 5.0\n")
        succeed("--params", "p.toml")
        expected = hdcrf.refine(inputs[2][0], probabilities=inputs[2][2], iterations=2, appearance_weight=5.0)
        np.testing.assert_array_equal(labels("a2"), expected)

    def test_workers_do_not_change_results(self, folders):
        succeed("--workers", 1, "--threads", 1, output="one")
        succeed("--workers", 4, "--threads", 1, output="four")
        assert contents("one") == contents("four")

    def test_notes_of_many_files_are_one(self, folders):
        for stem in STEMS:
            values = np.load(f"probabilities/{stem}.npy")
            np.save(f"probabilities/{stem}.npy", values.astype(np.float16))
        result = succeed()
        note = "Note: prediction probabilities/a0.npy: float16 converted to float32"
        assert result.stderr == f"{note} (and 5 other files like it)\n"
        assert succeed("--restart", "--quiet").output == ""

    def test_warnings_become_notes(self, folders, monkeypatch):
        read = image_files.read_photo

        def warn(path, **options):
            if path.stem in ("a0", "a3"):
                warnings.warn("odd", stacklevel=1)
            return read(path, **options)

        monkeypatch.setattr(image_files, "read_photo", warn)
        result = succeed()
        assert result.stderr == "Note: image images/a0.png: odd (and 1 other file like it)\n"

    def test_tiff_without_tifffile(self, folders, monkeypatch):
        """It is said once, before any work."""
        os.rename("probabilities/a3.npy", "probabilities/a3.tif")
        monkeypatch.setitem(sys.modules, "tifffile", None)
        assert refuse().endswith(
            'prediction probabilities/a3.tif needs tifffile: pip install "hdcrf[batch]"\n'
        )

    def test_ground_truth_that_does_not_count(self, folders):
        for stem in STEMS:
            Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(f"truth/{stem}.png")
        result = succeed("--ground-truth", "truth")
        assert result.stderr.startswith("Hint: no pixel of the ground truth counts")
        assert "IoU" not in result.stdout

    @pytest.mark.parametrize("predictions", ["labels", "probabilities"])
    def test_settings_in_the_report(self, predictions, folders):
        words = ("--gt-prob", 0.6, "--unknown", 7) if predictions == "labels" else ()
        succeed("--iterations", 3, *words, "--report", "report.html", predictions=predictions)
        settings = dict(
            json.loads(re.search(r'"settings": ?(\[\[.*?\]\])', Path("report.html").read_text())[1])
        )
        assert settings["iterations"] == "3"
        assert "version" not in settings  # the page says it
        expected = ("0.6", "7") if predictions == "labels" else (None, None)
        assert (settings.get("gt prob"), settings.get("unknown")) == expected


class TestAtWork:
    def test_workers_work_at_once(self, folders, monkeypatch):
        met = threading.Barrier(3)
        read = image_files.read_photo

        def read_together(*arguments, **options):
            met.wait(timeout=60)  # raises unless three are here
            return read(*arguments, **options)

        monkeypatch.setattr(image_files, "read_photo", read_together)
        assert "by 3 workers on" in succeed("--workers", 3).stdout

    @pytest.mark.parametrize(
        ("words", "images", "expected"),
        [
            *(((), 6, (4, 1)), ((), 2, (2, 2)), (("--workers", 1), 6, (1, 4)), (("--threads", 3), 1, (1, 3))),
            (("--threads", 9), 1, (1, 4)),
        ],
    )
    def test_cpus_are_shared(self, words, images, expected, folders, monkeypatch):
        monkeypatch.setattr(machine, "cpu_count", lambda: 4)
        for stem in STEMS[images:]:
            os.remove(f"images/{stem}.png")
        seen = []
        likely = refinement.most_likely
        monkeypatch.setattr(
            refinement,
            "most_likely",
            lambda *given: (seen.append(torch.get_num_threads()), likely(*given))[1],
        )
        own = torch.get_num_threads()
        result = succeed(*words)
        workers, threads = expected
        assert set(seen) == {threads}
        assert f"by {workers} worker{'s' * (workers > 1)} on {threads} thread" in result.stdout
        after = []
        thread = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), after) == (own, [own])
        assert ("Note: --threads 9 is more than the CPUs; using 4" in result.stderr) == (9 in words)
        os.remove("out/a0.png")
        again = succeed(*words).stdout  # of a single image that is left
        assert "by 1 worker on " + ("3 threads" if 3 in words else "4 threads") in again

    def test_large_images_wait_for_each_other(self):
        budget = refinement._Budget(100)
        seen, most = [], []

        def take(needed):
            with budget.of(needed):
                seen.append(needed)
                most.append(sum(seen))
                time.sleep(0.01)
                seen.remove(needed)

        threads = [threading.Thread(target=take, args=(needed,)) for needed in (60, 60, 500, 30, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) == 5
        assert max(total for total in most if total < 500) <= 100
        assert 500 in most  # alone

    @pytest.mark.parametrize(("memory", "together"), [(875_000, 1), (1_750_000, 3)])
    def test_images_wait_for_memory(self, memory, together, folders, monkeypatch):
        """Each takes 421 kB for its pixels and three labels, of four fifths."""
        monkeypatch.setattr(machine, "memory_of", lambda device: memory)
        likely = refinement.most_likely
        at_work, most = [], []

        def slowly(*given):
            at_work.append(given)
            most.append(len(at_work))
            time.sleep(0.1)
            at_work.pop()
            return likely(*given)

        monkeypatch.setattr(refinement, "most_likely", slowly)
        succeed("--workers", 4)
        assert len(most) == COUNT
        assert max(most) == together

    @pytest.mark.parametrize("count", [3, 60])
    def test_memory_grows_with_the_labels(self, count, folders, monkeypatch):
        asked = []
        monkeypatch.setattr(
            refinement._Budget, "of", lambda self, needed: (asked.append(needed), nullcontext())[1]
        )
        np.save("costs.npy", 1 - np.eye(count, dtype=np.float32))
        succeed("--workers", 1, "--compatibility", "costs.npy", predictions="labels")
        assert asked == COUNT * [24 * 36 * 3, 24 * 36 * (470 + 17 * (count - 2))]

    def test_progress(self, folders, monkeypatch):
        shown = []

        class Terminal:
            def isatty(self):
                return True

            def write(self, text):
                shown.append(text)

            def flush(self):
                pass

        monkeypatch.setattr("sys.stderr", Terminal())
        words = ["images", "probabilities", "-o", "out", "--ground-truth", "truth"]
        batch.main(words[:4], standalone_mode=False)
        text = "".join(shown)
        assert "6/6" in text
        assert "images/s" in text
        for given, expected in ((words[:4], "Images 1/1"), (words, "Scores 5/5 Images 1/1")):
            os.remove("out/a1.png")  # the others would make the rate too high and the time left too short
            shown.clear()
            batch.main(given, standalone_mode=False)
            ends = re.findall(r"(Images|Scores) .*?\] +(\d+)/(\d+)", "".join(shown))
            assert " ".join(f"{name} {done}/{all_}" for name, done, all_ in ends if done == all_) == expected


def test_every_option_is_documented():
    page = Path(__file__).parents[1].joinpath("docs", "command_line.md").read_text(encoding="utf-8")
    section = page.split("\n## hdcrf batch\n")[1].split("\n## ")[0]
    shared = page.split("\n## hdcrf image\n")[1].split("\n## ")[0]
    own = {"--output", "--workers", "--restart", "--ground-truth", "--ignore", "--scores", "--report"}
    own |= {"--unknown", "--gt-prob", "--threads", "--device", "--quiet"}
    for option in batch.params:
        if option.param_type_name == "option":
            name = option.opts[0] if option.opts[0].startswith("--") else option.opts[1]
            assert f"`{name}" in (section if name in own else section + shared), name
