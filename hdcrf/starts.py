"""Where labels of pixels, voxels and points start from: an annotation by its values, or probabilities.

Subclasses of `Start` add how the labels look in files: `Start(**vars(start))` takes one over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hdcrf
from hdcrf.arrays import check_float32_range
from hdcrf.failures import as_input_error
from hdcrf.files import InputError
from hdcrf.refine import most_likely

__all__ = ["MOST_ANNOTATED", "Start", "start_from_annotation", "start_from_probabilities"]

MOST_ANNOTATED = 256
"""An annotation of more labels is most likely something else, such as intensities."""


@dataclass(frozen=True)
class Start:
    """Where a labelling starts from.

    Attributes:
        logits: (K, *S) float32.
        labels: (*S) the most probable labels 0 … K-1, -1 where unknown.
        values: (K,) what these are called in files.
        annotated: Whether they come from an annotation.
    """

    logits: Tensor
    labels: NDArray[np.int64]
    values: NDArray[np.int64]
    annotated: bool

    @property
    def given(self) -> NDArray[np.int64]:
        """The labels (*S) by what they are called in files, -1 where unknown."""
        return np.where(self.labels < 0, -1, self.values[self.labels])

    @property
    def names(self) -> list[str]:
        """What the labels are called."""
        return [str(value) for value in self.values]

    @property
    def listed(self) -> str:
        """The labels in a phrase, for those who read the marginals' columns."""
        shown = self.names if len(self.names) <= 8 else [*self.names[:6], "…", self.names[-1]]
        return f"of label{'s' if len(self.names) > 1 else ''} {', '.join(shown)}"


def start_from_annotation(
    name: str, annotation: NDArray[np.int64], unknown: Collection[int], gt_prob: float
) -> Start:
    """Return logits for an annotation, whose labels may be any integers.

    Args:
        name: What it is called in messages.
        annotation: (*S).
        unknown: Values that say nothing.
        gt_prob: The probability that a label is right.

    Raises:
        InputError: If there are no labels, or too many, or `gt_prob` is no better than chance.
    """
    values, labels = _unique(annotation)
    known = ~np.isin(values, list(unknown))
    count = int(known.sum())
    if count == 0:
        listed = ", ".join(map(str, values[:4]))
        raise InputError(
            f"{name}: all labels are unknown, as there are only {listed}; label some of each class"
        )
    if count > MOST_ANNOTATED:
        raise InputError(
            f"{name} has {count} labels, from {values[known][0]} to {values[known][-1]}; at most "
            f"{MOST_ANNOTATED} are taken: look whether these are labels"
        )
    numbers = np.where(known, np.cumsum(known) - 1, -1)
    labels = numbers[labels.reshape(annotation.shape)]
    with as_input_error(f"{name}: "):
        logits = hdcrf.logits_from_labels(torch.from_numpy(labels)[None], count, gt_prob=gt_prob)[0]
    return Start(logits, labels, values[known], annotated=True)


def _unique(annotation: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values that there are, and for each place which of them it has."""
    low, high = int(annotation.min(initial=0)), int(annotation.max(initial=0))
    if low < 0 or high >= max(annotation.size, 1 << 16):  # too far apart to be counted
        return np.unique(annotation, return_inverse=True)
    found = np.bincount(annotation.ravel(), minlength=1) > 0
    return np.flatnonzero(found), (np.cumsum(found) - 1)[annotation]


def start_from_probabilities(name: str, probabilities: NDArray[np.floating]) -> Start:
    """Return logits for probabilities (*S, K).

    Raises:
        InputError: If they are none.
    """
    with as_input_error(f"{name}: "):
        check_float32_range("probabilities", probabilities)
        given = torch.from_numpy(probabilities.astype(np.float32))
        logits = hdcrf.logits_from_probabilities(given, dim=-1)
        labels = most_likely(given, "auto").numpy()
    values = np.arange(probabilities.shape[-1])
    return Start(logits.movedim(-1, 0), labels, values, annotated=False)
