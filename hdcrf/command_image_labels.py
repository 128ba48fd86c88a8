"""The labels that `hdcrf image` starts from, and how it writes and describes those that it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hdcrf
from hdcrf import array_files, image_files, pictures
from hdcrf.arrays import check_float32_range
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, Note
from hdcrf.mean_field import MeanFieldResult

__all__ = [
    "Start",
    "read_start",
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

    @property
    def names(self) -> list[str]:
        """What the labels are called: an annotation's by their colours."""
        if not self.drawn:
            return [str(label) for label in range(len(self.colours))]
        return ["#" + bytes(colour).hex() for colour in self.colours]


def read_start(
    annotation: Path | None,
    probabilities: Path | None,
    gt_prob: float,
    shape: tuple[int, int],
    note: Note,
) -> Start:
    """Read whichever is given, for a photo of that shape."""
    if annotation is not None:
        return _start_from_annotation(annotation, gt_prob, shape, note)
    if probabilities is not None:
        return _start_from_probabilities(probabilities, shape, note)
    raise RuntimeError("neither was given")


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
