"""What inference did to the labels: the lines that a command ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PHOTO", "Tally", "Wording"]


@dataclass(frozen=True)
class Wording:
    """What a command calls what it labels.

    Attributes:
        places: Its pixels, voxels or points.
        guide_sigma: A sentence on what may be wrong with the sigma of colours or intensities.
        place_sigmas: The same on those of positions.
    """

    places: str
    guide_sigma: str
    place_sigmas: str

    def causes(self, trust: str) -> str:
        """Return lines on why a label may outvote the others; `trust` is on how far the input is trusted."""
        return (
            "Likely causes:\n"
            "  - the weights are too strong: lower --appearance-weight and --smoothness-weight\n"
            f"  - {self.guide_sigma}\n"
            f"  - {self.place_sigmas}\n"
            f"  - {trust}"
        )


PHOTO = Wording(
    places="pixels",
    guide_sigma="--appearance-sigma-rgb is in the wrong units or too large, so that edges do not count: it "
    "is in steps of 0..255, about 3 to 30",
    place_sigmas="--appearance-sigma-xy or --smoothness-sigma is too large for the photo: they are in pixels",
)


class Tally:
    """Counts of labels before and after inference, added up part by part.

    Args:
        wording: What is labelled.
        names: Of the labels 0 … K-1.
    """

    def __init__(self, wording: Wording, names: Sequence[str]) -> None:
        self._wording = wording
        self._names = names
        self._before = np.zeros(len(names) + 1, dtype=np.int64)  # unknown ones first
        self._after = np.zeros(len(names), dtype=np.int64)
        self._changed = 0

    def add(self, before: NDArray[np.integer[Any]], after: NDArray[np.integer[Any]]) -> None:
        """Count labels, -1 where they were unknown before, and those of the same places after."""
        self._before += np.bincount(before.ravel() + 1, minlength=len(self._before))
        self._after += np.bincount(after.ravel(), minlength=len(self._after))
        self._changed += int(((before != after) & (before >= 0)).sum())

    def summary(self, *, annotated: bool) -> list[str]:
        """Return lines on what changed.

        Args:
            annotated: Whether the labels before were an annotation, of which some may be unknown.
        """
        places, total = self._wording.places, max(1, int(self._before.sum()))
        unknown = int(self._before[0])
        changed = self._changed / max(1, total - unknown)
        lines = [f"{np.count_nonzero(self._after)} of {len(self._names)} labels found"]
        if annotated:
            lines.append(f"{unknown / total:.1%} of the {places} were unknown and got a label")
            lines.append(f"{changed:.1%} of the annotated {places} changed theirs")
        else:
            lines.append(f"{changed:.1%} of the {places} changed their label")
        return lines

    def hint(self, *, annotated: bool) -> str | None:
        """Return why the result may be a single label, and what to try; None if it is not."""
        found = np.flatnonzero(self._after)
        if len(found) != 1:
            return None
        label, name = int(found[0]), self._names[found[0]]
        if len(self._names) == 1:
            return f"Hint: the result is all one label, because there is only one, {name}; give at least two."
        place = self._wording.places[:-1]
        if self._before[label + 1] == self._before.sum():
            return (
                f"Hint: the result is all label {name}, because that is the most probable label at every "
                f"{place} of the input; look at the probabilities."
            )
        trust = (
            "the annotation is trusted too little: raise --gt-prob, or draw more of the other labels"
            if annotated
            else "the probabilities are hardly above those of this label: look at them without the CRF "
            "(--iterations 0)"
        )
        return (
            f"Hint: the result is all label {name}: the others were outvoted. {self._wording.causes(trust)}"
        )
