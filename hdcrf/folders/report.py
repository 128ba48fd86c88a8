"""One page on what refining did to a folder: scores, labels, pictures and a table, in a file of its own."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import hdcrf
from hdcrf import image_files, pictures
from hdcrf.files import InputError, ignore, many
from hdcrf.folders.outcomes import Failure, Outcome, total_scores
from hdcrf.folders.predictions import read_labels, read_prediction
from hdcrf.folders.scores import LabelScores
from hdcrf.folders.tables import class_rows, plain, summary_rows

__all__ = ["write_report"]

_MOST_CARDS = 24  # with pictures
_SIDE = 480  # pixels, the longer one of a picture
_PALETTE = 4096  # colours, after which those of labels repeat
_NONE = -1

# Of differences, from Okabe and Ito's: mended, broken, and changed without either.
_MENDED, _BROKEN, _CHANGED = 0, 1, 2
_DIFFERENCES = np.array([(86, 180, 233), (213, 94, 0), (240, 228, 66)], np.uint8)


def write_report(
    file: BinaryIO,
    outcomes: Sequence[Outcome],
    failures: Sequence[Failure],
    *,
    settings: Mapping[str, str],
    title: str,
    unknown: Collection[int] = (),
    hints: Sequence[str] = (),
) -> str:
    """Write a page of HTML that needs no other file and fetches nothing.

    It has the scores of the images that have some, and small pictures of those that changed most, which are
    read again; where one cannot be, the page says so.

    Args:
        file: Open for writing.
        outcomes: Of the images that were refined.
        failures: Of those that were not.
        settings: What they were refined with, by name.
        title: Of the page.
        unknown: Values in predictions that say nothing.
        hints: Sentences on what may mislead in the scores.

    Returns:
        What the page holds, in a few words.
    """
    changed_most = sorted(range(len(outcomes)), key=lambda index: -outcomes[index].changed)[:_MOST_CARDS]
    cards = [{"row": index, **_card(outcomes[index], unknown)} for index in changed_most]
    total = total_scores(outcomes)
    data = {
        "title": title,
        "version": hdcrf.__version__,
        "settings": [[str(name), str(value)] for name, value in settings.items()],
        "hints": list(hints),
        "scores": [] if total is None else [[name, *plain(row)] for name, row in summary_rows(*total)],
        "labels": [] if total is None else _labels(*total, outcomes[0].output),
        "rows": [_row(outcome) for outcome in outcomes],
        "failures": [[failure.stem, failure.message] for failure in failures],
        "cards": cards,
        "differences": ["#" + bytes(colour).hex() for colour in _DIFFERENCES],
    }
    file.write(_page(title, data))
    return f"{many(len(outcomes), 'image')}, {len(cards)} with pictures"


def _page(title: str, data: object) -> bytes:
    """Fill the template.

    Nothing that comes from files is markup: it all is in one block of JSON, in which no tag can begin. The
    page's policy lets only the template's own script and style work, by their hashes.
    """
    template = resources.files("hdcrf.folders").joinpath("report.html").read_text(encoding="utf-8")
    hashes = {
        tag: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for tag, text in re.findall(r"<(script|style)>(.*?)</\1>", template, re.DOTALL)
    }
    policy = (
        f"default-src 'none'; img-src data:; script-src {hashes['script']}; style-src {hashes['style']}; "
        "base-uri 'none'; form-action 'none'"
    )
    escaped = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"title": html.escape(title), "policy": policy, "data": escaped}
    page = re.sub(r"\{\{(title|policy|data)\}\}", lambda match: values[match[1]], template)
    return page.encode(errors="replace")


def _row(outcome: Outcome) -> list[Any]:
    """Return an image's name, the share that changed, and how well it agrees with its ground truth.

    The latter are the pixels that count, null without ground truth; mean IoU before and after; boundary F
    before and after. No number is rounded: the page does so once, as the terminal does.
    """
    before, after = outcome.before, outcome.after
    if before is None or after is None:
        return [outcome.pair.stem, outcome.changed, None, None, None, None, None]
    iou, boundary, _ = (plain(scores) for _, scores in summary_rows(before, after))
    return [outcome.pair.stem, outcome.changed, sum(before.pixels.values()), *iou[:2], *boundary[:2]]


def _labels(before: LabelScores, after: LabelScores, output: Path) -> list[list[Any]]:
    """Return of each label its value, colour, share of the truth, IoU and boundary F; most frequent first."""
    rows = sorted(class_rows(before, after), key=lambda row: -row[1])
    all_pixels = max(1, sum(row[1] for row in rows))
    colours = _colours(np.array([row[0] for row in rows], np.int64), _palette_of(output))
    return [
        [value, "#" + bytes(colour).hex(), pixels / all_pixels, plain(iou), plain(boundary)]
        for (value, pixels, iou, boundary), colour in zip(rows, colours, strict=True)
    ]


def _palette_of(output: Path) -> NDArray[np.uint8] | None:
    """Return the colours of a PNG of labels, if it has some and can be read."""
    try:
        return image_files.picture_size_and_palette(output)[1]
    except InputError:  # the pictures' own reading says what is wrong
        return None


def _colours(values: NDArray[np.int64], palette: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return the colours (N, 3) of labels: from a palette where it has them, otherwise those of `palette`."""
    few = values.max(initial=0) < 256  # the whole palette takes a second
    colours = _standard(256 if few else _PALETTE)[values % _PALETTE]
    if palette is not None:
        inside = values < len(palette)
        colours[inside] = palette[values[inside]]
    return colours


@lru_cache
def _standard(count: int) -> NDArray[np.uint8]:
    return pictures.palette(count)


def _card(outcome: Outcome, unknown: Collection[int]) -> dict[str, Any]:
    """Return the small pictures of an image as data URIs, and what is wrong where one cannot be read."""
    pair = outcome.pair
    problems: list[str] = []

    def tried(read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except InputError as error:
            problems.append(str(error))
            return None

    photo = tried(_read_photo, pair.image)
    if photo is None:
        return {"problems": problems}
    shape = photo.shape[:2]
    before = tried(_read_before, pair.prediction, shape, unknown)
    after = tried(read_labels, "refined labels", outcome.output, shape)
    truth = None if pair.truth is None else tried(read_labels, "ground truth", pair.truth, shape)
    if truth is not None:
        truth = _counted(truth, outcome.after)
    palette = _palette_of(outcome.output)
    card: dict[str, Any] = {
        "problems": problems,
        "ratio": round(shape[1] / shape[0], 4),
        "photo": _jpeg(photo),
    }
    for name, labels in (("before", before), ("after", after), ("truth", truth)):
        if labels is not None:
            card[name] = _drawn(labels, palette)
    if before is not None and after is not None:
        differences = _differences(before, after, truth)
        card["differences"] = _drawn(differences, _DIFFERENCES)
        if truth is not None:
            card["mended"], card["broken"] = (
                float(np.mean(differences == kind)) for kind in (_MENDED, _BROKEN)
            )
    return card


def _counted(truth: NDArray[np.int64], scores: LabelScores | None) -> NDArray[np.int64] | None:
    """Return the truth where it counted, -1 elsewhere; None if it did nowhere."""
    if scores is None:
        return None
    truth = np.where(np.isin(truth, scores.values), truth, _NONE)
    return truth if (truth >= 0).any() else None


def _read_photo(path: Path) -> NDArray[np.uint8]:
    return image_files.read_photo(path, note=ignore)


def _read_before(path: Path, shape: tuple[int, int], unknown: Collection[int]) -> NDArray[np.int64]:
    """Return the labels that an image started from, -1 where unknown."""
    if path.suffix.lower() == ".png":
        labels = read_labels("prediction", path, shape)
        labels[np.isin(labels, list(unknown))] = _NONE
        return labels
    start = read_prediction(path, shape, gt_prob=1.0, note=ignore)
    return start.given


def _differences(
    before: NDArray[np.int64], after: NDArray[np.int64], truth: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return what became of each pixel, -1 where nothing did."""
    found = np.where(before != after, _CHANGED, _NONE)
    if truth is not None:
        found[(before != after) & (after == truth)] = _MENDED
        found[(before != after) & (before == truth) & (truth >= 0)] = _BROKEN
    return found


def _small(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a picture of that shape on the page."""
    scale = min(1.0, _SIDE / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _jpeg(photo: NDArray[np.uint8]) -> str:
    from PIL import Image

    height, width = _small((photo.shape[0], photo.shape[1]))
    image = Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=82)
    return _uri("jpeg", file)


def _drawn(labels: NDArray[np.int64], palette: NDArray[np.uint8] | None) -> str:
    """Return a picture of labels in their colours, transparent where they are -1."""
    from PIL import Image

    places = [
        ((np.arange(size) + 0.5) * length / size).astype(int)
        for length, size in zip(labels.shape, _small((labels.shape[0], labels.shape[1])), strict=True)
    ]
    values, numbers = np.unique(labels[np.ix_(*places)], return_inverse=True)
    numbers = numbers.reshape(len(places[0]), len(places[1]))
    colours = _colours(np.maximum(values, 0), palette)
    alpha = np.where(values < 0, 0, 255).astype(np.uint8)
    if len(values) <= 256:
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette(np.ascontiguousarray(colours).tobytes())
        extra: dict[str, Any] = {"transparency": alpha.tobytes()} if values[0] < 0 else {}
    else:
        image = Image.fromarray(np.column_stack([colours, alpha])[numbers])
        extra = {}
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True, **extra)
    return _uri("png", file)


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
