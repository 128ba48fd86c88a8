"""Scores of labels against the truth, by brute force: one pixel, one label, one pair of pixels at a time."""

import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from hdcrf.folders.outcomes import Outcome, total_scores
from hdcrf.folders.scores import LabelScores, score_labels


def boundary(labels, value):
    """Return the pixels of a label that have a neighbour in the image without it."""
    height, width = labels.shape
    return [
        (row, column)
        for row in range(height)
        for column in range(width)
        if labels[row, column] == value
        and any(
            labels[r, c] != value
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            if 0 <= r < height and 0 <= c < width
        )
    ]


def expected_boundary_f(labels, truth, value):
    tolerance = 0.0075 * math.hypot(*truth.shape)
    given, true = boundary(labels, value), boundary(truth, value)

    def share(points, others):
        return sum(any(math.dist(p, q) <= tolerance for q in others) for p in points) / len(points)

    if not given and not true:
        return float((labels == value).all() and (truth == value).all())
    if not given or not true:
        return 0.0
    precision, recall = share(given, true), share(true, given)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def check(scores, labels, truth, ignore=None):
    """Compare the scores of one image with their definitions, with one set of pixels a label."""
    counted = (truth >= 0) & (truth != ignore)
    truth = np.where(counted, truth, -1)
    labels = np.where(counted & (labels != ignore), labels, -1)
    values = sorted({*truth[truth >= 0].tolist(), *labels[labels >= 0].tolist()})
    assert scores.values.tolist() == values
    assert scores.values.dtype == scores.confusion.dtype == np.int64
    for row, true in enumerate(values):
        for column, predicted in enumerate(values):
            assert scores.confusion[row, column] == ((truth == true) & (labels == predicted)).sum()
    for value in values:
        both = ((labels == value) & (truth == value)).sum()
        either = ((labels == value) | (truth == value)).sum()
        assert scores.iou[value] == both / either
        assert scores.pixels[value] == (truth == value).sum()
        assert scores.boundary_f[value] == pytest.approx(expected_boundary_f(labels, truth, value), abs=1e-12)
    if values:
        assert scores.accuracy == (labels == truth)[counted].mean()
        assert scores.mean_iou == pytest.approx(np.mean(list(scores.iou.values())))
        assert scores.mean_boundary_f == pytest.approx(np.mean(list(scores.boundary_f.values())))


class TestOneImage:
    @given(
        arrays(np.int64, (2, 5, 7), elements=st.integers(-1, 3)),
        st.sampled_from([None, 0, 2, 9]),
    )
    def test_any_labels(self, both, ignore):
        check(score_labels(both[0], both[1], ignore=ignore), both[0], both[1], ignore)

    @pytest.mark.parametrize("shape", [(150, 220), (1, 700), (400, 3)])
    def test_tolerance(self, shape):
        # Diagonals of 266, 700 and 400 pixels: boundaries up to 1.99, 5.25 and 3 pixels apart match.
        random = np.random.default_rng(0)
        truth = np.zeros(shape, np.uint8)
        for _ in range(4):
            row, column = (random.integers(0, length) for length in shape)
            truth[row : row + 60, column : column + 60] = random.integers(1, 4)
        labels = np.roll(truth, (2, 4), (0, 1))
        labels[random.random(shape) < 0.005] = 1
        scores = score_labels(labels, truth)
        assert 0 < scores.mean_boundary_f < 1
        check(scores, labels.astype(int), truth.astype(int))

    def test_tolerance_ends_at_three_quarters_of_a_percent(self):
        # A diagonal of 400 exactly, for 3 pixels.
        for shift, expected in ((3, 1.0), (4, 0.0)):
            truth, labels = np.zeros((240, 320), int), np.zeros((240, 320), int)
            truth[:, 100:] = labels[:, 100 + shift :] = 1
            assert score_labels(labels, truth).boundary_f == {0: expected, 1: expected}

    @pytest.mark.parametrize("count", [8, 9, 64, 65, 200])
    def test_many_labels(self, count):
        # The labels' bits are laid out in 8 to 64, several times.
        random = np.random.default_rng(count)
        truth = np.repeat(np.repeat(random.integers(0, count, (9, 12)), 4, 0), 4, 1)
        labels = np.roll(truth, 1, 1)
        check(score_labels(labels, truth), labels, truth)

    def test_masks_and_16_bit_labels(self):
        for values in ((0, 255), (0, 65535), (7, 10**12)):
            truth = np.array([values], np.int64)[0][np.eye(6, dtype=int)]
            labels = truth[:, ::-1].copy()
            check(score_labels(labels, truth), labels, truth)
            truth[2, 3], labels[4, 1] = -1, values[1] + 5
            check(score_labels(labels, truth, ignore=values[1] + 5), labels, truth, values[1] + 5)
        unsigned = np.array([[0, 65535], [65535, 65535]], np.uint16)
        assert score_labels(unsigned, unsigned).iou == {0: 1.0, 65535: 1.0}

    def test_perfect(self):
        truth = np.arange(35).reshape(5, 7) // 9
        scores = score_labels(truth, truth)
        assert scores.accuracy == scores.mean_iou == scores.mean_boundary_f == 1

    def test_ignored_pixels_count_nowhere(self):
        random = np.random.default_rng(0)
        truth = random.integers(0, 3, (20, 30))
        truth[5:9, 4:20] = 255
        labels = random.integers(0, 3, (20, 30))
        other = np.where(truth == 255, random.integers(0, 9, truth.shape), labels)
        first, second = (score_labels(given, truth, ignore=255) for given in (labels, other))
        assert first.values.tolist() == second.values.tolist() == [0, 1, 2]
        assert first.confusion.sum() == (truth != 255).sum()
        assert first.mean_iou == second.mean_iou
        assert first.boundary_f == second.boundary_f

    def test_no_label_is_a_miss(self):
        truth = np.zeros((2, 4), int)
        labels = np.array([[0, 0, 0, -1], [0, 0, 0, 255]])
        scores = score_labels(labels, truth, ignore=255)
        assert scores.iou == {0: 6 / 8}
        assert scores.accuracy == 6 / 8
        assert scores.unlabelled.tolist() == [2]

    def test_no_boundaries(self):
        zeros, ones = np.zeros((4, 5), int), np.ones((4, 5), int)
        assert score_labels(zeros, zeros).boundary_f == {0: 1.0}
        assert score_labels(zeros, ones).boundary_f == {0: 0.0, 1: 0.0}
        half = np.repeat([[0, 1]], 4, 0)
        assert score_labels(half, np.zeros_like(half)).boundary_f == {0: 0.0, 1: 0.0}
        assert score_labels(ones, ones, boundaries=False).boundary_f == {}
        assert math.isnan(score_labels(ones, ones, boundaries=False).mean_boundary_f)

    @pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 3)])
    def test_nothing_to_count(self, shape):
        scores = score_labels(np.zeros(shape, int), np.full(shape, -1))
        assert scores.iou == scores.boundary_f == scores.pixels == {}
        assert math.isnan(scores.accuracy)
        assert math.isnan(scores.mean_iou)

    def test_errors(self):
        plane = np.zeros((2, 3), int)
        with pytest.raises(ValueError, match=r"one shape \(H, W\), got \(2, 3\) and \(3, 2\)"):
            score_labels(plane, plane.T)
        with pytest.raises(ValueError, match="one shape"):
            score_labels(plane[0], plane[0])
        with pytest.raises(TypeError, match="`truth` must hold integers, got float64"):
            score_labels(plane, plane.astype(float))
        with pytest.raises(ValueError, match="there are 4097 labels, more than 4096"):
            score_labels(np.arange(4097)[None], np.arange(4097)[None])


class TestManyImages:
    @given(st.lists(arrays(np.int64, (2, 3, 4), elements=st.sampled_from([0, 1, 5, 300])), max_size=4))
    def test_counts_are_those_of_one_large_image(self, images):
        scores = [score_labels(labels, truth) for labels, truth in images]
        merged = LabelScores.merged(scores)
        stacked = np.concatenate([np.zeros((2, 0, 4), np.int64), *images], 1)
        whole = score_labels(stacked[0], stacked[1])
        assert merged.values.tolist() == whole.values.tolist()
        assert merged.confusion.tolist() == whole.confusion.tolist()
        assert merged.pixels == whole.pixels
        assert merged.iou == whole.iou
        for value in merged.values.tolist():
            of_images = [one.boundary_f[value] for one in scores if value in one.boundary_f]
            assert merged.boundary_f[value] == pytest.approx(np.mean(of_images))

    def test_sum(self):
        first = score_labels(np.array([[0, 0, 2]]), np.array([[0, 2, 2]]))
        second = score_labels(np.array([[7, -1]]), np.array([[7, 7]]))
        both = first + second
        assert both.values.tolist() == [0, 2, 7]
        assert both.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
        assert both.iou == {0: 1 / 2, 2: 1 / 2, 7: 1 / 2}
        assert (second + first).confusion.tolist() == both.confusion.tolist()
        assert (first.values.tolist(), first.confusion.tolist()) == ([0, 2], [[1, 0], [1, 1]])  # unchanged

    def test_it_travels_between_processes(self):
        scores = score_labels(np.eye(5, dtype=int), np.zeros((5, 5), int))
        copy = pickle.loads(pickle.dumps(scores))
        assert copy.iou == scores.iou
        assert copy.boundary_f == scores.boundary_f

    def test_of_a_folder(self, tmp_path):
        perfect = score_labels(np.eye(4, dtype=int), np.eye(4, dtype=int))
        wrong = score_labels(1 - np.eye(4, dtype=int), np.eye(4, dtype=int))
        outcomes = [
            Outcome(pair=None, output=tmp_path, changed=1.0, before=wrong, after=perfect),
            Outcome(pair=None, output=tmp_path, changed=0.0, before=perfect, after=perfect),
            Outcome(pair=None, output=tmp_path, changed=0.5),
        ]
        before, after = total_scores(outcomes)
        assert (before.accuracy, after.accuracy) == (0.5, 1)
        assert total_scores(outcomes[2:]) is None
        assert total_scores([]) is None
