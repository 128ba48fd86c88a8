"""How well labels agree with the true ones: over pixels, over regions, and along boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_CLASSES", "LabelScores", "score_labels"]

MOST_CLASSES = 4096
"""More labels are most likely something else, such as a depth; and the confusion grows as their square."""

_TABLE = 1 << 20  # entries: labels up to it are numbered by a table, others by sorting them
_BITS = 64


@dataclass(frozen=True, eq=False)
class LabelScores:
    """What is counted of one image or of many, and the scores that follow from it.

    A score of several images comes from the sum of their counts, not from the mean of their scores; that of
    boundaries alone is a mean over images by definition.

    Attributes:
        values: (L,) int64, ascending: the labels that the truth or the prediction has.
        confusion: (L, L) int64: pixels by their label in the truth (rows) and in the prediction (columns).
        unlabelled: (L,) int64: pixels by their label in the truth to which the prediction gives none.
        boundary_sums: (L,) float64: the boundary F-score, summed over images.
        boundary_images: (L,) int64: how many images these are; 0 if boundaries were left out.

    Reference: Csurka, Larlus and Perronnin, What is a good evaluation measure for semantic segmentation?,
    BMVC 2013.
    """

    values: NDArray[np.int64]
    confusion: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    boundary_sums: NDArray[np.float64]
    boundary_images: NDArray[np.int64]

    @classmethod
    def merged(cls, scores: Iterable[LabelScores]) -> LabelScores:
        """Return the scores of several images, or of several sets of them, together.

        Raises:
            ValueError: If they have more than `MOST_CLASSES` labels between them.
        """
        parts = list(scores)
        empty = np.zeros(0, np.int64)
        values = np.unique(np.concatenate([empty, *(part.values for part in parts)]))
        _check_count(len(values))
        total = cls._nothing(values)
        for part in parts:
            places = np.searchsorted(values, part.values)
            total.confusion[np.ix_(places, places)] += part.confusion
            total.unlabelled[places] += part.unlabelled
            total.boundary_sums[places] += part.boundary_sums
            total.boundary_images[places] += part.boundary_images
        return total

    @classmethod
    def _nothing(cls, values: NDArray[np.int64]) -> LabelScores:
        """Return scores in which nothing is counted yet."""
        count = len(values)
        return cls(
            values,
            np.zeros((count, count), np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, np.float64),
            np.zeros(count, np.int64),
        )

    def __add__(self, other: LabelScores) -> LabelScores:
        return LabelScores.merged((self, other))

    @property
    def pixels(self) -> dict[int, int]:
        """How many pixels each label has in the truth."""
        counts = self.confusion.sum(1) + self.unlabelled
        return {int(value): int(count) for value, count in zip(self.values, counts, strict=True)}

    @property
    def accuracy(self) -> float:
        """The share of the pixels whose label is right; NaN if there are none."""
        total = int(self.confusion.sum() + self.unlabelled.sum())
        return int(self.confusion.trace()) / total if total else math.nan

    @property
    def iou(self) -> dict[int, float]:
        """For each label, pixels that it has in both, as a share of those that it has in either."""
        both = self.confusion.diagonal()
        either = self.confusion.sum(0) + self.confusion.sum(1) + self.unlabelled - both
        return {int(self.values[i]): float(both[i] / either[i]) for i in np.flatnonzero(either)}

    @property
    def mean_iou(self) -> float:
        """The mean over the labels that the truth or the prediction has; NaN if there are none."""
        return _mean(self.iou)

    @property
    def boundary_f(self) -> dict[int, float]:
        """For each label, the mean over the images whose truth or prediction has it."""
        sums, images = self.boundary_sums, self.boundary_images
        return {int(self.values[i]): float(sums[i] / images[i]) for i in np.flatnonzero(images)}

    @property
    def mean_boundary_f(self) -> float:
        """The mean over the labels that the truth or the prediction has; NaN if there are none."""
        return _mean(self.boundary_f)


def _mean(scores: dict[int, float]) -> float:
    return sum(scores.values()) / len(scores) if scores else math.nan


def score_labels(
    labels: NDArray[np.integer[Any]],
    truth: NDArray[np.integer[Any]],
    *,
    ignore: int | None = None,
    boundaries: bool = True,
) -> LabelScores:
    """Compare the labels of an image with the true ones.

    Pixels that are negative or `ignore` in the truth count nowhere. Where the prediction alone is negative or
    `ignore`, the pixel has no label: it is a miss for its label in the truth.

    A pixel lies on the boundary of its label if one of its four neighbours in the image has another label or
    none. Precision is the share of the prediction's boundary that lies within 0.75% of the image's diagonal
    of the truth's, recall is the reverse, both for one label at a time, and F = 2 P R / (P + R). A label with
    a boundary in one of the two alone has F = 0. One without any has F = 1 if it fills the image in both, and
    0 if in one of them.

    Args:
        labels: (H, W) integers, the prediction.
        truth: (H, W) integers.
        ignore: A further value that says nothing.
        boundaries: Whether to score boundaries, which takes most of the time.

    Raises:
        TypeError: If these are no integers.
        ValueError: If the shapes differ, or there are more than `MOST_CLASSES` labels.

    Reference: Csurka, Larlus and Perronnin 2013, Section 3. Their score is a mean over an image's labels
    first, ours over a label's images first, so that it can be told for each label.
    """
    for name, array in (("labels", labels), ("truth", truth)):
        if array.dtype.kind not in "iu":
            raise TypeError(f"`{name}` must hold integers, got {array.dtype}")
    if labels.ndim != 2 or labels.shape != truth.shape:
        raise ValueError(
            f"`labels` and `truth` must have one shape (H, W), got {labels.shape} and {truth.shape}"
        )
    both = np.stack([truth, labels], dtype=np.int64, casting="unsafe")
    if ignore is not None:
        both[both == ignore] = -1
    both[both < 0] = -1
    both[:, both[0] < 0] = -1
    values, numbers = _numbered(both)
    count = len(values)
    _check_count(count)
    true, given = numbers
    # The last column takes the pixels without a label in the prediction; -1 in the truth counts nowhere.
    pairs = (true * (count + 1) + np.where(given < 0, count, given))[true >= 0]
    table = np.bincount(pairs, minlength=count * (count + 1)).reshape(count, count + 1)
    scores = LabelScores(
        values, table[:, :count], table[:, count], np.zeros(count), np.zeros(count, dtype=np.int64)
    )
    if boundaries:
        scores.boundary_sums[:] = _boundary_f(true, given, count)
        scores.boundary_sums[scores.confusion.diagonal() == true.size] = 1  # there is no boundary
        scores.boundary_images[:] = 1
    return scores


def _check_count(count: int) -> None:
    if count > MOST_CLASSES:
        raise ValueError(f"there are {count} labels, more than {MOST_CLASSES}; look whether these are labels")


def _numbered(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels that there are, and the number of each pixel's among them; -1, none, stays -1."""
    top = int(labels.max(initial=-1)) + 1
    if top > _TABLE:
        values, numbers = np.unique(labels, return_inverse=True)
        none = int(values[0] < 0)
        return values[none:], numbers.reshape(labels.shape) - none
    found = np.zeros(top + 1, bool)
    found[labels] = True  # -1 is the last entry
    values = np.flatnonzero(found[:top])
    table = np.full(top + 1, -1)
    table[values] = np.arange(len(values))
    return values, table[labels]


def _boundary_f(true: NDArray[np.int64], given: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the F-score of each label's boundary; 0 without one.

    Args:
        true: (H, W) numbers 0 … count-1, -1 for none.
        given: The same of the prediction.
        count: How many labels there are.
    """
    on_true, on_given = _on_boundary(true), _on_boundary(given)
    near_true, near_given = np.zeros(true.shape, bool), np.zeros(true.shape, bool)
    # Each pixel has one label, so that a bit a label tells all boundaries apart while they are widened.
    for first in range(0, count, _BITS):
        size = min(_BITS, count - first)
        kind = np.dtype(f"u{max(8, 1 << (size - 1).bit_length()) // 8}")
        table = np.zeros(count + 1, kind)  # -1, none, is the last entry
        table[first : first + size] = kind.type(1) << np.arange(size, dtype=kind)
        of_true, of_given = table[true] * on_true, table[given] * on_given
        near_true |= (of_given & _widened(of_true)) != 0
        near_given |= (of_true & _widened(of_given)) != 0
    with np.errstate(invalid="ignore"):  # 0 / 0 where a boundary is empty, or nothing is near
        precision, recall = (
            np.bincount(numbers[near], minlength=count) / np.bincount(numbers[on], minlength=count)
            for numbers, near, on in ((given, near_true, on_given), (true, near_given, on_true))
        )
        return np.nan_to_num(2 * precision * recall / (precision + recall))


def _on_boundary(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which pixels have a neighbour of another label; the image's border is no boundary."""
    found = np.zeros(numbers.shape, bool)
    beside = numbers[:, 1:] != numbers[:, :-1]
    found[:, 1:] |= beside
    found[:, :-1] |= beside
    below = numbers[1:] != numbers[:-1]
    found[1:] |= below
    found[:-1] |= below
    return found & (numbers >= 0)


def _widened(bits: NDArray[Any]) -> NDArray[Any]:
    """Return each pixel's bits and those of all pixels within 0.75% of the diagonal of it.

    A disc is a run of pixels in each row, and runs grow by a pixel at either end: the cost is that of the
    radius, not of the disc's area.
    """
    height, width = bits.shape
    square = 9 * (height**2 + width**2) // 160_000  # (0.0075 diagonal)², in whole pixels
    reach = math.isqrt(square)
    padded = np.pad(bits, reach)
    runs = padded[:, reach : reach + width].copy()
    result = bits.copy()
    for half in range(reach + 1):
        if half:
            runs |= padded[:, reach - half : reach - half + width]
            runs |= padded[:, reach + half : reach + half + width]
        for row in range(reach + 1):
            if math.isqrt(square - row**2) == half:
                result |= runs[reach - row : reach - row + height]
                result |= runs[reach + row : reach + row + height]
    return result
