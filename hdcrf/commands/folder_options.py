"""What the commands on whole folders share: options, their checks, and what they say at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import click

from hdcrf.commands.failures import as_print_failure
from hdcrf.commands.options import is_given
from hdcrf.files import import_extra, many, printable
from hdcrf.folders.outcomes import Failure
from hdcrf.folders.pairs import Pair
from hdcrf.folders.scores import LabelScores

__all__ = [
    "IGNORE",
    "UNKNOWN",
    "check_predictions",
    "fewer_labels",
    "has_png",
    "print_failures",
    "unseen_label",
]

IGNORE = click.option(
    "--ignore",
    type=int,
    metavar="VALUE",
    help="Value of the ground truth that does not count; by default 255 for probabilities of up to 255 "
    "labels, and none for predictions in PNG.",
)

_MOST_NAMED = 5

UNKNOWN = click.option(
    "--unknown",
    type=click.IntRange(min=0, max=65535),
    multiple=True,
    metavar="VALUE",
    help="Value in predictions in PNG that says nothing, and gets a label. May be repeated.",
)


def has_png(pairs: Sequence[Pair]) -> bool:
    """Return whether some predictions are labels in PNG."""
    return any(pair.prediction.suffix.lower() == ".png" for pair in pairs)


def check_predictions(context: click.Context, pairs: Sequence[Pair]) -> None:
    """Check that what is said on labels in PNG comes with some, and that TIFF files can be read.

    Raises:
        click.UsageError: If there is no PNG.
        InputError: If tifffile is missing.
    """
    tiff = [pair.prediction for pair in pairs if pair.prediction.suffix.lower() in (".tif", ".tiff")]
    if tiff:
        import_extra("tifffile", f"prediction {tiff[0]}", "batch")
    if has_png(pairs):
        return
    for name in ("unknown", "gt_prob"):
        if is_given(context, name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} goes with predictions in PNG; probabilities say it themselves"
            )


def unseen_label(pixels: Mapping[int, int], offered: Collection[int]) -> str | None:
    """Return a hint if the ground truth has a label that no prediction has; on the most frequent one.

    Args:
        pixels: How many each label has in the ground truth.
        offered: The labels of the predictions.
    """
    unseen = {value: count for value, count in pixels.items() if count and value not in offered}
    if not unseen:
        return None
    value = max(unseen, key=lambda each: unseen[each])
    return (
        f"label {value} has {unseen[value] / sum(pixels.values()):.1%} of the ground truth, and no "
        f"prediction has it; if it marks pixels that do not count, say --ignore {value}"
    )


def fewer_labels(before: LabelScores, after: LabelScores, first: str, second: str) -> str | None:
    """Return a hint if a mean IoU is over fewer labels than the one that it is compared with.

    Args:
        before: What has more of them.
        after: What has fewer.
        first: What comes after "the mean IoU" to say which that is.
        second: What is the other one.
    """
    gone = before.iou.keys() - after.iou.keys()
    if not gone:
        return None
    return (
        f"the mean IoU {first} is over {many(len(before.iou), 'label')}, and {second} over {len(after.iou)}: "
        f"{_some(gone)} not in the ground truth, and in no result any more, which is a part of what it gained"
    )


def _some(labels: Collection[int]) -> str:
    """Return which labels are meant, the first few by name."""
    first = sorted(labels)[:_MOST_NAMED]
    named = ", ".join(map(str, first)) + (
        f" and {len(labels) - len(first)} more" * (len(labels) > len(first))
    )
    return f"label {named} is" if len(labels) == 1 else f"labels {named} are"


def print_failures(failures: Sequence[Failure], total: int) -> None:
    """Print why images failed, also where quiet."""
    with as_print_failure():
        if failures:
            click.echo(f"{len(failures)} of {many(total, 'image')} failed:", err=True)
        for failure in failures:
            click.echo(f"  {printable(failure.stem)}: {printable(failure.message)}", err=True)
