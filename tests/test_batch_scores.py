"""`hdcrf batch` scores the predictions and the results, and hints at what went wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from batch_folder import HEIGHT, LABELS, STEMS, WIDTH, counts, labels, succeed
from PIL import Image

from hdcrf.commands import batch_results as command_batch_results
from hdcrf.folders.scores import LabelScores, score_labels


class TestScores:
    def total(self, inputs, output="out", ignore=None):
        parts = [
            (
                score_labels(p.argmax(2), t, ignore=ignore),
                score_labels(labels(stem, output), t, ignore=ignore),
            )
            for stem, (_, t, p) in zip(STEMS, inputs, strict=True)
        ]
        return [LabelScores.merged(each) for each in zip(*parts, strict=True)]

    def test_before_and_after(self, folders, inputs):
        words = ("--scores", "s.csv", "--scores", "s.json", "--report", "r.html")
        result = succeed("--ground-truth", "truth", *words)
        before, after = self.total(inputs)
        found = json.loads(Path("s.json").read_text())
        assert found["mean_iou"]["before"] == pytest.approx(before.mean_iou)
        assert found["mean_iou"]["after"] == pytest.approx(after.mean_iou)
        assert found["mean_boundary_f"]["after"] == pytest.approx(after.mean_boundary_f)
        assert after.mean_iou != before.mean_iou
        assert len(found["images"]) == 6
        lines = Path("s.csv").read_text().splitlines()
        assert len(lines) == 1 + LABELS + 1
        assert f"{100 * after.mean_iou:.1f}" in result.stdout
        page = Path("r.html").read_text()
        assert "a5" in page
        assert "appearance weight" in page

    @pytest.mark.parametrize("predictions", ["probabilities", "labels"])
    def test_kept_outputs_are_scored_from_their_files(self, predictions, folders):
        words = ("--ground-truth", "truth", "--scores", "s.json")
        succeed(*words, predictions=predictions)
        fresh = Path("s.json").read_bytes()
        Path("s.json").unlink()
        assert counts(succeed(*words, predictions=predictions)) == (0, 6)
        assert Path("s.json").read_bytes() == fresh

    def test_void_of_probabilities(self, folders, inputs):
        for stem, (_, truth, _) in zip(STEMS, inputs, strict=True):
            marked = truth.copy()
            marked[:4] = 255
            Image.fromarray(marked.astype(np.uint8)).save(f"truth/{stem}.png")
        found = {}
        for words in ((), ("--ignore", 255), ("--ignore", 1)):
            result = succeed("--ground-truth", "truth", "--scores", "s.json", *words)
            found[words] = json.loads(Path("s.json").read_text())
        assert found[()] == found["--ignore", 255]
        assert [label["label"] for label in found[()]["labels"]] == [0, 1, 2]
        assert [label["label"] for label in found["--ignore", 1]["labels"]] == [0, 2, 255]
        assert "Hint" not in result.stderr
        result = succeed("--ground-truth", "truth", predictions="labels", output="png")
        share = 4 / HEIGHT
        assert (
            f"Hint: label 255 has {share:.1%} of the ground truth, and no prediction has it" in result.stderr
        )
        assert "say --ignore 255" in result.stderr

    def test_masks_of_0_and_255(self, folders, inputs):
        for stem, (_, truth, probabilities) in zip(STEMS, inputs, strict=True):
            for folder, numbers in (("truth", truth), ("labels", probabilities.argmax(2))):
                Image.fromarray(np.where(numbers > 0, 255, 0).astype(np.uint8)).save(f"{folder}/{stem}.png")
        result = succeed("--ground-truth", "truth", "--scores", "s.json", predictions="labels")
        found = json.loads(Path("s.json").read_text())
        assert [label["label"] for label in found["labels"]] == [0, 255]
        assert result.stderr == ""

    def test_a_kill_while_the_page_is_made_leaves_nothing(self, folders, monkeypatch):
        """Nothing is on the disk yet."""
        seen = []
        make = command_batch_results.write_report

        def look(*arguments, **options):
            seen.append(os.listdir())
            return make(*arguments, **options)

        monkeypatch.setattr(command_batch_results, "write_report", look)
        before = set(os.listdir())
        succeed("--ground-truth", "truth", "--report", "r.html", "--scores", "s.csv")
        assert [set(names) - before for names in seen] == [{"out"}]
        assert {"r.html", "s.csv"} <= set(os.listdir())

    def test_truth_of_some(self, folders):
        for stem in STEMS[2:]:
            os.remove(f"truth/{stem}.png")
        result = succeed("--ground-truth", "truth", "--scores", "s.json")
        assert "4 of 6 images have no ground truth and are not scored" in result.stderr
        images = json.loads(Path("s.json").read_text())["images"]
        assert [image["mean_iou"] is None for image in images] == [False] * 2 + [True] * 4


class TestHints:
    def test_nearly_all_are_one_label(self, folders):
        strong = ("--appearance-weight", 1e3, "--appearance-sigma-xy", 1e3, "--appearance-sigma-rgb", 1e3)
        result = succeed(*strong)
        assert "Hint: 6 of 6 results are a single label: the others were outvoted" in result.stderr
        assert "lower --appearance-weight" in result.stderr
        words = ("--ground-truth", "truth", "--report", "r.html", "--scores", "s.json")
        assert "Hint" in succeed(*strong, *words, "--quiet").stderr
        assert "6 of 6 results are a single label" in Path("r.html").read_text()
        assert "6 of 6 results are a single label" in json.loads(Path("s.json").read_text())["hints"][0]
        assert "Hint" not in succeed().stderr

    def test_of_one_label_from_the_start(self, folders):
        for stem in STEMS:
            Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(f"labels/{stem}.png")
        assert "Hint" not in succeed(predictions="labels").stderr

    @pytest.mark.parametrize(
        ("stray", "expected"),
        [([7], "label 7 is"), ([9, 8, 7, 6, 5, 4], "labels 4, 5, 6, 7, 8 and 1 more are")],
    )
    def test_labels_that_no_result_has_any_more(self, stray, expected, folders, inputs):
        """They raise the mean IoU, as it is over fewer labels."""
        for stem, (_, _, probabilities) in zip(STEMS, inputs, strict=True):
            given = probabilities.argmax(2).astype(np.uint8)
            given[0, : len(stray)] = stray
            Image.fromarray(given).save(f"labels/{stem}.png")
        words = ("--ground-truth", "truth", "--scores", "s.json")
        result = succeed(*words, predictions="labels")
        scores = json.loads(Path("s.json").read_text())["labels"]
        before, after = (
            sum(label["iou"][key] is not None for label in scores) for key in ("before", "after")
        )
        assert (before, after) == (LABELS + len(stray), LABELS)
        assert f"is over {before} labels, and the one after over {after}: {expected} not in" in result.stderr
        assert "Hint" not in succeed("--ground-truth", "truth").stderr
