"""The scores before and after as text, CSV and JSON."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.pairs import Pair
from hdcrf.folders.scores import score_labels
from hdcrf.folders.tables import scores_table, write_scores_csv, write_scores_json

TRUTH = np.array([[0, 0, 255, 255]] * 4)
BEFORE = np.array([[0, 255, 255, 3]] * 4)  # label 3 is not in the truth, and is gone after
AFTER = np.array([[0, 0, 0, 255]] * 4)


@pytest.fixture
def scores():
    return score_labels(BEFORE, TRUTH), score_labels(AFTER, TRUTH)


def test_text(scores):
    # IoU 1/2, 0, 1/3 before, 2/3, 1/2 after. A tolerance below one pixel; boundaries of columns before:
    # 0 has column 0 (truth: 1), 255 has 1 and 2 (truth: 2); after: 0 has column 2, 255 has 3.
    expected = """\
                  before   after    gain
mean IoU            27.8    58.3   +30.6
mean boundary F     22.2     0.0   -22.2
pixel accuracy      50.0    75.0   +25.0

   label     IoU   after    gain         F   after    gain
       0    50.0    66.7   +16.7       0.0     0.0    +0.0
       3     0.0       -       -       0.0       -       -
     255    33.3    50.0   +16.7      66.7     0.0   -66.7"""
    assert scores_table(*scores) == expected


def test_text_without_boundaries():
    scores = score_labels(TRUTH, TRUTH, boundaries=False)
    expected = """\
                  before   after    gain
mean IoU           100.0   100.0    +0.0
pixel accuracy     100.0   100.0    +0.0

   label     IoU   after    gain
       0   100.0   100.0    +0.0
     255   100.0   100.0    +0.0"""
    assert scores_table(scores, scores) == expected


def test_text_of_many_labels():
    # Of 50 labels, the even ones have 2 pixels, the odd ones 1.
    truth = np.repeat(np.arange(50), 2 - np.arange(50) % 2)[None]
    scores = score_labels(truth, truth)
    lines = scores_table(scores, scores).splitlines()
    assert lines[-1] == "… and 10 labels with fewer pixels: --scores and --report have all"
    shown = [int(line.split()[0]) for line in lines[6:-1]]
    assert shown == [*range(31), *range(32, 50, 2)]


def test_text_of_a_gain_that_rounds_to_nothing():
    truth = np.zeros((1, 10_000), int)
    labels = truth.copy()
    labels[0, 0] = -1
    before, after = (
        score_labels(truth, truth, boundaries=False),
        score_labels(labels, truth, boundaries=False),
    )
    assert "-0.0" not in scores_table(before, after)


def test_csv(scores):
    file = io.BytesIO()
    assert write_scores_csv(file, *scores) == "3 labels"
    rows = list(csv.DictReader(io.StringIO(file.getvalue().decode())))
    assert [row["label"] for row in rows] == ["0", "3", "255", "mean"]
    assert [row["pixels"] for row in rows] == ["8", "0", "8", "16"]
    assert [float(row["iou_before"]) for row in rows[:3]] == [1 / 2, 0, 1 / 3]
    assert [row["iou_after"] for row in rows] == [str(2 / 3), "", "0.5", str((2 / 3 + 1 / 2) / 2)]
    assert [row["iou_gain"] for row in rows[1:2]] == [""]
    assert float(rows[2]["boundary_f_gain"]) == pytest.approx(-2 / 3)


def test_json(scores):
    pair = Pair('a "quoted" ü', Path("images/a.jpg"), Path("predictions/a.png"), Path("truth/a.png"))
    other = Pair("b", Path("images/b.jpg"), Path("predictions/b.npy"), None)
    outcomes = [
        Outcome(pair, Path("out/a.png"), 0.5, *scores),
        Outcome(other, Path("out/b.png"), 0.25),
    ]
    file = io.BytesIO()
    held = write_scores_json(file, *scores, outcomes, [Failure("c", "cannot be read")], ["look at label 3"])
    assert held == "3 labels, 2 images"
    read = json.loads(file.getvalue())
    summary = {"mean_iou", "mean_boundary_f", "pixel_accuracy"}
    assert set(read) == {*summary, "hints", "labels", "images", "failures"}
    assert read["hints"] == ["look at label 3"]
    assert read["pixel_accuracy"] == {"before": 0.5, "after": 0.75, "gain": 0.25}
    assert read["labels"][1] == {
        "label": 3,
        "pixels": 0,
        "iou": {"before": 0.0, "after": None, "gain": None},
        "boundary_f": {"before": 0.0, "after": None, "gain": None},
    }
    first, second = read["images"]
    assert first["mean_iou"] == read["mean_iou"]
    assert second == {
        "name": "b",
        "image": "images/b.jpg",
        "prediction": "predictions/b.npy",
        "output": "out/b.png",
        "truth": None,
        "changed": 0.25,
        "mean_iou": None,
        "mean_boundary_f": None,
        "pixel_accuracy": None,
    }
    assert first["name"] == 'a "quoted" ü'
    assert read["failures"] == [{"name": "c", "message": "cannot be read"}]
