"""What `hdcrf batch` ends with: its other outputs, notes, a summary, hints and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from hdcrf.commands.folder_options import fewer_labels, unseen_label
from hdcrf.commands.tally import PHOTO
from hdcrf.files import Note, many
from hdcrf.folders.manifest import Entry
from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.refinement import Result
from hdcrf.folders.report import write_report
from hdcrf.folders.scores import LabelScores
from hdcrf.folders.tables import scores_table, write_scores_csv, write_scores_json

__all__ = ["hints", "output_writers", "print_notes", "summary"]

_NEARLY_ALL = 0.9


def output_writers(
    outputs: Mapping[str, tuple[Path, Sequence[str]]],
    outcomes: Sequence[Outcome],
    failures: Sequence[Failure],
    total: tuple[LabelScores, LabelScores] | None,
    *,
    settings: Mapping[str, str],
    unknown: Collection[int],
    title: str,
    hints: Sequence[str],
) -> dict[str, Callable[[BinaryIO, Path], str]]:
    """Return what writes each output."""

    def write_scores(file: BinaryIO, path: Path) -> str:
        before, after = total or (LabelScores.merged(()), LabelScores.merged(()))
        if path.suffix.lower() == ".csv":
            return write_scores_csv(file, before, after)
        return write_scores_json(file, before, after, outcomes, failures, hints)

    def write_page(file: BinaryIO, _: Path) -> str:
        return write_report(
            file, outcomes, failures, settings=settings, title=title, unknown=unknown, hints=hints
        )

    return {name: write_page if name == "--report" else write_scores for name in outputs}


def print_notes(results: Sequence[Result], note: Note) -> None:
    """Print what was noted of files: what is the same of many, once."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for result in results:
        for message in result.notes:
            kind = message
            for path in (result.pair.image, result.pair.prediction):
                kind = kind.replace(str(path), "")
            first.setdefault(kind, message)
            count[kind] += 1
    for kind, message in first.items():
        others = count[kind] - 1
        note(message + (f" (and {many(others, 'other file')} like it)" if others else ""))


def summary(entries: Sequence[Entry], total: tuple[LabelScores, LabelScores] | None) -> list[str]:
    """Return lines on what changed, and the table of scores."""
    known = sum(entry.known for entry in entries)
    pixels = sum(entry.pixels for entry in entries)
    lines = []
    if pixels > known:
        lines.append(f"{(pixels - known) / pixels:.1%} of the pixels were unknown and got a label")
    if known:
        changed = sum(entry.changed for entry in entries)
        lines.append(
            f"{changed / known:.1%} of the {'labelled ' * (pixels > known)}pixels changed their label"
        )
    if total is not None and len(total[0].pixels):
        lines += ["", scores_table(*total)]
    return lines


def hints(
    entries: Sequence[Entry], total: tuple[LabelScores, LabelScores] | None, ignore: int | None
) -> list[str]:
    """Return what may have gone wrong, and what to try."""
    lines = []
    several = [entry for entry in entries if entry.labels_before > 1]
    single = sum(entry.labels_after == 1 for entry in several)
    if single and single >= _NEARLY_ALL * len(several):
        trust = (
            "the predictions are hardly above chance, or trusted too little: see --gt-prob, --iterations 0"
        )
        lines.append(
            f"{single} of {many(len(several), 'result')} are a single label: the others were "
            f"outvoted. {PHOTO.causes(trust)}"
        )
    if total is not None and not any(total[0].pixels.values()):
        lines.append("no pixel of the ground truth counts, so that nothing is scored; see --ignore")
    elif total is not None and ignore is None:
        offered = {
            int(value)
            for scores in total
            for value, count in zip(scores.values, scores.confusion.sum(0), strict=True)
            if count
        }
        if (unseen := unseen_label(total[0].pixels, offered)) is not None:
            lines.append(unseen)
    if total is not None and (fewer := fewer_labels(*total, "before", "the one after")):
        lines.append(fewer)
    return lines
