"""What `hdcrf tune` ends with: the scores of both parts, what was gained, and whether anything was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hdcrf.commands.folder_options import fewer_labels
from hdcrf.files import many
from hdcrf.folders.scores import LabelScores
from hdcrf.tuning.budget import Found

__all__ = ["NOUNS", "Row", "effort", "fewer", "gain", "table", "warning"]

NOUNS = {"optuna": "trial", "gradient": "epoch"}
"""What a trial is called, by the method of the search."""


@dataclass(frozen=True)
class Row:
    """Scores of both parts, of one way to refine them."""

    name: str
    trained: LabelScores
    held: LabelScores


def table(rows: Sequence[Row], trained: int, held: int) -> list[str]:
    """Return lines with the scores in percent."""
    lines = [
        f"{'':11}{many(trained, 'image') + ' searched':>22}{many(held, 'image') + ' held back':>22}",
        f"{'':11}" + 2 * f"{'mean IoU':>12}{'accuracy':>10}",
    ]
    for row in rows:
        scores = (row.trained, row.held)
        columns = "".join(f"{100 * each.mean_iou:12.2f}{100 * each.accuracy:10.2f}" for each in scores)
        lines.append(f"{row.name:11}{columns}")
    return lines


def effort(found: Found, method: str, seconds: float) -> str:
    """Say how many trials, or whatever they are called, it took, how long, and which was the best."""
    noun = NOUNS[method]
    earlier = f", after {many(found.earlier, noun)} of earlier calls" if found.earlier else ""
    count = many(found.trials - found.earlier, noun)
    return f"{count} in {seconds:.1f} s with reading and scoring{earlier}; the best is number {found.number}"


def gain(rows: Sequence[Row]) -> str:
    """Say what the images that were held back gained."""
    *others, tuned = rows
    gains = [f"{100 * (tuned.held.mean_iou - row.held.mean_iou):+.2f} above {row.name}" for row in others]
    return f"held back, in points of mean IoU: {', '.join(gains)}"


def warning(rows: Sequence[Row]) -> list[str]:
    """Return a warning if the images that were held back have gained nothing."""
    *others, tuned = rows
    best = max(others, key=lambda row: row.held.mean_iou)
    if tuned.held.mean_iou > best.held.mean_iou:
        return []
    return [
        f"Warning: on the images held back, what was tuned is no better than {best.name}: mean IoU "
        f"{100 * tuned.held.mean_iou:.2f} % against {100 * best.held.mean_iou:.2f} %. It is written all the "
        "same; label more images, or ones that are more alike"
    ]


def fewer(rows: Sequence[Row]) -> list[str]:
    """Return a hint for each row whose mean IoU, of the images held back, is over labels that vanished."""
    *others, tuned = rows
    found = [
        fewer_labels(row.held, tuned.held, f"of {row.name} on the images held back", "that of what was tuned")
        for row in others
    ]
    return [f"Hint: {hint}" for hint in found if hint is not None]
