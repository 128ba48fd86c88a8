"""Scores before and after as a table: for a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO

from hdcrf.files import many
from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.scores import LabelScores

__all__ = ["class_rows", "plain", "scores_table", "summary_rows", "write_scores_csv", "write_scores_json"]

_MOST_LINES = 40
_KEYS = ("before", "after", "gain")

Triple = tuple[float, float, float]
"""A score before, after, and what was gained; NaN where there is none."""


def summary_rows(before: LabelScores, after: LabelScores) -> list[tuple[str, Triple]]:
    """Return the scores over all labels, with their names."""
    return [
        ("mean IoU", _triple(before.mean_iou, after.mean_iou)),
        ("mean boundary F", _triple(before.mean_boundary_f, after.mean_boundary_f)),
        ("pixel accuracy", _triple(before.accuracy, after.accuracy)),
    ]


def class_rows(before: LabelScores, after: LabelScores) -> list[tuple[int, int, Triple, Triple]]:
    """Return for each label its value, how many pixels it has in the truth, its IoU and its boundary F.

    A label that is neither in the truth nor, say, in the labels after has no score there: NaN.
    """
    pixels = before.pixels
    of_before, of_after = (before.iou, before.boundary_f), (after.iou, after.boundary_f)
    rows = []
    for value in sorted({*before.iou, *after.iou}):
        iou, boundary = (
            _triple(first.get(value, math.nan), second.get(value, math.nan))
            for first, second in zip(of_before, of_after, strict=True)
        )
        rows.append((value, pixels.get(value, 0), iou, boundary))
    return rows


def _triple(before: float, after: float) -> Triple:
    return before, after, after - before


def scores_table(before: LabelScores, after: LabelScores) -> str:
    """Return the scores in percent, for a terminal.

    The lines are those of all labels together and of each label; of more than 40, of the 40 that have most
    pixels in the truth, and a line on where the others are.
    """
    rows = class_rows(before, after)
    shown = sorted(sorted(rows, key=lambda row: -row[1])[:_MOST_LINES])
    lines = [f"{'':16}{'before':>8}{'after':>8}{'gain':>8}"]
    lines += [
        f"{name:16}{_percent(scores)}" for name, scores in summary_rows(before, after) if _known(scores)
    ]
    boundaries = any(_known(row[3]) for row in rows)
    lines.append("")
    lines.append(
        f"{'label':>8}{'IoU':>8}{'after':>8}{'gain':>8}" + f"{'F':>10}{'after':>8}{'gain':>8}" * boundaries
    )
    for value, _, iou, boundary in shown:
        lines.append(f"{value:>8}{_percent(iou)}" + f"  {_percent(boundary)}" * boundaries)
    if len(rows) > len(shown):
        lines.append(
            f"… and {many(len(rows) - len(shown), 'label')} with fewer pixels: --scores and --report have all"
        )
    return "\n".join(lines)


def _known(scores: Triple) -> bool:
    return not all(map(math.isnan, scores))


def _percent(scores: Triple) -> str:
    """Return three columns of 8 letters."""
    *absolute, gain = (100 * score for score in scores)
    texts = ["-" if math.isnan(score) else f"{score:.1f}" for score in absolute]
    texts.append("-" if math.isnan(gain) else f"{round(gain, 1) + 0.0:+.1f}")
    return "".join(f"{text:>8}" for text in texts)


def write_scores_csv(file: BinaryIO, before: LabelScores, after: LabelScores) -> str:
    """Write a line for each label, in the order of their values; return what the file holds.

    The columns are `label`, `pixels` (in the truth), `iou_before`, `iou_after`, `iou_gain`,
    `boundary_f_before`, `boundary_f_after` and `boundary_f_gain`: shares of 1, empty where there is none. The
    last line, of the label `mean`, has all pixels and the mean over labels.
    """
    rows = class_rows(before, after)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{score}_{key}" for score in ("iou", "boundary_f") for key in _KEYS]
    writer.writerow(["label", "pixels", *names])
    (_, mean_iou), (_, mean_boundary), _ = summary_rows(before, after)
    mean = ("mean", sum(row[1] for row in rows), mean_iou, mean_boundary)
    for name, pixels, iou, boundary in (*rows, mean):
        writer.writerow([name, pixels, *("" if math.isnan(score) else score for score in (*iou, *boundary))])
    file.write(text.getvalue().encode())
    return many(len(rows), "label")


def write_scores_json(
    file: BinaryIO,
    before: LabelScores,
    after: LabelScores,
    outcomes: Sequence[Outcome] = (),
    failures: Sequence[Failure] = (),
    hints: Sequence[str] = (),
) -> str:
    """Write all scores, of all labels and of all images; return what the file holds.

    One object with `mean_iou`, `mean_boundary_f` and `pixel_accuracy`, each an object of `before`, `after`
    and `gain`; `labels`, a list of objects with `label`, `pixels` (in the truth), `iou` and `boundary_f`;
    `images`, a list of objects with `name`, `image`, `prediction`, `output` and `truth` (paths), `changed`
    (the share of the pixels that had a label), `mean_iou`, `mean_boundary_f` and `pixel_accuracy`;
    `failures`, a list of objects with `name` and `message`; `hints`, sentences on what may mislead in the
    scores. Scores are shares of 1, and null where there is none.
    """
    labels = [
        {"label": value, "pixels": pixels, "iou": _named(iou), "boundary_f": _named(boundary)}
        for value, pixels, iou, boundary in class_rows(before, after)
    ]
    images = [
        {
            "name": outcome.pair.stem,
            "image": str(outcome.pair.image),
            "prediction": str(outcome.pair.prediction),
            "output": str(outcome.output),
            "truth": None if outcome.pair.truth is None else str(outcome.pair.truth),
            "changed": outcome.changed,
            **_summary(outcome.before, outcome.after),
        }
        for outcome in outcomes
    ]
    failed = [{"name": failure.stem, "message": failure.message} for failure in failures]
    everything = {
        **_summary(before, after),
        "hints": list(hints),
        "labels": labels,
        "images": images,
        "failures": failed,
    }
    file.write(json.dumps(everything, indent=1, allow_nan=False).encode() + b"\n")
    return f"{many(len(labels), 'label')}, {many(len(images), 'image')}"


def _summary(before: LabelScores | None, after: LabelScores | None) -> dict[str, Any]:
    """Return the scores over all labels by their keys; null where there are none."""
    if before is None or after is None:
        return dict.fromkeys(("mean_iou", "mean_boundary_f", "pixel_accuracy"))
    return {name.replace(" ", "_").lower(): _named(scores) for name, scores in summary_rows(before, after)}


def _named(scores: Triple) -> dict[str, float | None]:
    return dict(zip(_KEYS, plain(scores), strict=True))


def plain(scores: Triple) -> list[float | None]:
    """Return scores as JSON takes them: with null for NaN."""
    return [None if math.isnan(score) else score for score in scores]
