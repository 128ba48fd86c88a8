"""The labels that `hdcrf image` starts from, and how it writes and describes those that it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

import hdcrf
from hdcrf import array_files, image_files, pictures
from hdcrf.files import Note
from hdcrf.mean_field import MeanFieldResult
from hdcrf.starts import Start, start_from_annotation, start_from_probabilities

__all__ = [
    "PhotoStart",
    "read_start",
    "write_energy",
    "write_labels",
    "write_marginals",
    "write_picture",
]


@dataclass(frozen=True)
class PhotoStart(Start):
    """Where the labelling of a photo starts from: logits (K, H, W), labels (H, W).

    Attributes:
        colours: (K, 3) uint8, of an annotation, or of a palette.
    """

    colours: NDArray[np.uint8]

    @property
    def names(self) -> list[str]:
        """What the labels are called: an annotation's by their colours."""
        if not self.annotated:
            return super().names
        return ["#" + bytes(colour).hex() for colour in self.colours]


def read_start(
    annotation: Path | None,
    probabilities: Path | None,
    gt_prob: float,
    shape: tuple[int, int],
    note: Note,
) -> PhotoStart:
    """Read whichever is given, for a photo of that shape."""
    if annotation is not None:
        drawn = image_files.read_annotation(annotation, shape, note=note)
        labels, colours = hdcrf.labels_from_annotation(drawn)
        start = start_from_annotation(f"annotation {annotation}", labels, (-1,), gt_prob)
    elif probabilities is not None:
        array = array_files.read_probabilities(probabilities, shape, note=note)
        image_files.check_label_count(f"probabilities {probabilities}", array.shape[2])
        start = start_from_probabilities(f"probabilities {probabilities}", array)
        colours = pictures.palette(array.shape[2])
    else:
        raise RuntimeError("neither was given")
    return PhotoStart(**vars(start), colours=colours)


def write_labels(file: BinaryIO, labels: NDArray[np.int64], start: PhotoStart) -> str:
    """Write the labels as a picture; return what it holds, for the report."""
    height, width = labels.shape
    if start.annotated:
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
