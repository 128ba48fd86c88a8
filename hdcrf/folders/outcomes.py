"""What became of each file of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hdcrf.folders.pairs import Pair
from hdcrf.folders.scores import LabelScores

__all__ = ["Failure", "Outcome", "total_scores"]


@dataclass(frozen=True)
class Outcome:
    """A pair of files whose labels were refined.

    Attributes:
        pair: The files.
        output: Where the refined labels are.
        changed: The share of the pixels with a label before whose label changed.
        before: The scores of the prediction; None without ground truth.
        after: Those of the refined labels.
    """

    pair: Pair
    output: Path
    changed: float
    before: LabelScores | None = None
    after: LabelScores | None = None


@dataclass(frozen=True)
class Failure:
    """A file that could not be refined.

    Attributes:
        stem: Its name.
        message: Why.
    """

    stem: str
    message: str


def total_scores(outcomes: Sequence[Outcome]) -> tuple[LabelScores, LabelScores] | None:
    """Return the scores before and after of all images that have both; None if no image has."""
    scored = [(one.before, one.after) for one in outcomes if one.before is not None and one.after is not None]
    if not scored:
        return None
    before, after = zip(*scored, strict=True)
    return LabelScores.merged(before), LabelScores.merged(after)
