"""The labels that `hdcrf image` starts from, and how it writes and describes those that it ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hdcrf
from hdcrf import array_files, image_files, pictures
from hdcrf.arrays import check_float32_range
from hdcrf.command_failures import as_input_error
from hdcrf.files import InputError, Note
from hdcrf.mean_field import MeanFieldResult

__all__ = [
    "Start",
    "single_label_hint",
    "start_reader",
    "summary",
    "write_energy",
    "write_labels",
    "write_marginals",
    "write_picture",
]


@dataclass(frozen=True)
class Start:
    """Where a labelling starts from.

    Attributes:
        logits: (1, K, H, W) float32.
        labels: (H, W) the most probable labels, -1 where unknown.
        colours: (K, 3) uint8.
        drawn: Whether the colours are those of an annotation.
    """

    logits: Tensor
    labels: NDArray[np.int64]
    colours: NDArray[np.uint8]
    drawn: bool


def start_reader(
    annotation: Path | None, probabilities: Path | None, gt_prob: float
) -> Callable[[tuple[int, int], Note], Start]:
    """Return the function that reads whichever is given, once the photo's shape is known."""
    if annotation is not None and probabilities is None:
        return partial(_start_from_annotation, annotation, gt_prob)
    if probabilities is not None and annotation is None:
        return partial(_start_from_probabilities, probabilities)
    came = "neither" if annotation is None else "both"
    raise click.UsageError(f"give either --annotation or --probabilities, got {came}")


def _start_from_annotation(path: Path, gt_prob: float, shape: tuple[int, int], note: Note) -> Start:
    labels, colours = hdcrf.labels_from_annotation(image_files.read_annotation(path, shape, note=note))
    with as_input_error():
        logits = hdcrf.logits_from_labels(torch.from_numpy(labels)[None], len(colours), gt_prob=gt_prob)
    return Start(logits, labels, colours, drawn=True)


def _start_from_probabilities(path: Path, shape: tuple[int, int], note: Note) -> Start:
    array = array_files.read_probabilities(path, shape, note=note)
    if array.shape[2] > image_files.MOST_LABELS:
        raise InputError(
            f"probabilities {path} have {array.shape[2]} labels, more than the {image_files.MOST_LABELS} "
            "that a PNG can hold; use hdcrf.refine in Python"
        )
    with as_input_error(f"probabilities {path}: "):
        check_float32_range("probabilities", array)
        logits = hdcrf.logits_from_probabilities(torch.from_numpy(array).float(), dim=2)
    colours = pictures.palette(array.shape[2])
    return Start(logits.permute(2, 0, 1)[None], array.argmax(2), colours, drawn=False)


def write_labels(file: BinaryIO, labels: NDArray[np.int64], start: Start) -> str:
    """Write the labels as a picture; return what it holds, for the report."""
    height, width = labels.shape
    if start.drawn:
        image_files.write_picture(file, start.colours[labels])
        kind = "the annotation's colours"
    else:
        image_files.write_labels(file, labels, start.colours)
        kind = "pixel values are labels"
    return f"{width} x {height} pixels, {kind}"


def write_picture(file: BinaryIO, path: Path, picture: NDArray[np.uint8]) -> str:
    """Write a picture; return what it holds, for the report."""
    image_files.write_picture(file, picture, path.suffix)
    return f"{picture.shape[1]} x {picture.shape[0]} pixels"


def write_energy(file: BinaryIO, result: MeanFieldResult) -> str:
    """Write the plot of the energy; return what it holds, for the report."""
    if result.energy is None or result.kl is None:
        raise RuntimeError("the energy was not tracked")
    figure = pictures.energy_plot(result.energy.cpu().numpy(), result.kl.cpu().numpy())
    figure.savefig(file, format="png")
    width, height = figure.get_size_inches() * figure.dpi
    return f"{width:.0f} x {height:.0f} pixels"


def write_marginals(file: BinaryIO, path: Path, marginals: NDArray[np.float32]) -> str:
    """Write the marginals (H, W, K); return what the file holds, for the report."""
    array_files.write_array(file, marginals, "marginals", path.suffix)
    return f"{' x '.join(str(length) for length in marginals.shape)} {marginals.dtype}"


def summary(labels: NDArray[np.int64], start: Start, result: MeanFieldResult, seconds: float) -> str:
    """Return lines on what inference did to the labels (H, W)."""
    known = start.labels >= 0
    changed = (labels != start.labels)[known].mean() if known.any() else 0.0
    lines = [f"{result.iterations} iterations in {seconds:.2f} s"]
    if result.energy is not None:
        first, last = float(result.energy[0]), float(result.energy[-1])
        lines.append(f"energy {first:.6g} before, {last:.6g} after")
    lines.append(f"{len(np.unique(labels))} of {len(start.colours)} labels found")
    if start.drawn:
        lines.append(f"{1 - known.mean():.1%} of the pixels were unknown and got a label")
        lines.append(f"{changed:.1%} of the annotated pixels changed theirs")
    else:
        lines.append(f"{changed:.1%} of the pixels changed their label")
    return "\n".join(lines)


def single_label_hint(label: int, start: Start) -> str:
    """Return why the result may be a single label, and what to try."""
    count = len(start.colours)
    name = "#" + bytes(start.colours[label]).hex() if start.drawn else str(label)
    if count == 1:
        return f"Hint: the result is all one label, because there is only one, {name}; give at least two."
    if (start.labels == label).all():
        return (
            f"Hint: the result is all label {name}, because that is the most probable label at every pixel "
            "of the input; look at the probabilities."
        )
    trust = (
        "\n  - the annotation is trusted too little: raise --gt-prob, or draw more of the other labels"
        if start.drawn
        else "\n  - the probabilities are hardly above those of this label: look at them without the CRF "
        "(--iterations 0)"
    )
    return (
        f"Hint: the result is all label {name}: the others were outvoted. Likely causes:\n"
        "  - the weights are too strong: lower --appearance-weight and --smoothness-weight\n"
        "  - --appearance-sigma-rgb is in the wrong units or too large, so that edges do not count: it is in "
        "steps of 0..255, about 3 to 30\n"
        "  - --appearance-sigma-xy or --smoothness-sigma is too large for the photo: they are in pixels"
        + trust
    )
