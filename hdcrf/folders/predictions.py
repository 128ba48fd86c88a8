"""Reading of what a network predicted for an image: labels as PNG, probabilities as NumPy or TIFF files."""

from __future__ import annotations

import logging
import threading
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hdcrf
from hdcrf import image_files
from hdcrf.array_files import check_probabilities, read_array
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, Note, check_file, import_extra, reason
from hdcrf.starts import Start, start_from_annotation, start_from_probabilities

__all__ = ["Prediction", "array_bytes", "read_labels", "read_prediction"]

_SUM_TOLERANCE = 0.01
_VOID = 255
_OWN = threading.local()  # .complaints: what tifffile logs in this thread


@dataclass(frozen=True)
class Prediction(Start):
    """Where the labelling of an image starts from: logits (K, H, W), labels (H, W).

    Attributes:
        palette: (P, 3) uint8, the colours of the values 0 … P-1 in a PNG of labels; None if there are none.
    """

    palette: NDArray[np.uint8] | None = None

    def ignored(self, ignore: int | None) -> int | None:
        """Return the value of the ground truth that does not count: the one given, or what is usual.

        Data sets mark such pixels with 255, which may be a label in a PNG, but not of so few probabilities.
        """
        usual = not self.annotated and len(self.values) <= _VOID
        return _VOID if ignore is None and usual else ignore


def read_prediction(
    path: Path,
    shape: tuple[int, int],
    *,
    gt_prob: float,
    unknown: Collection[int] = (),
    num_labels: int | None = None,
    note: Note = warnings.warn,
) -> Prediction:
    """Read the labels or the probabilities that were predicted for an image.

    Args:
        path: A PNG whose pixel values are labels; a .npy or .npz file of probabilities (H, W, K); or a TIFF
            file whose pages are the labels' probabilities, or with (H, W, K) in one page. Probabilities of 8
            or 16 bits are taken as steps of 1/255 or 1/65535.
        shape: (H, W) of the image.
        gt_prob: How far to trust a label of a PNG.
        unknown: Values of a PNG that say nothing.
        num_labels: K, where a model fixes it: labels in a PNG are then 0 … K-1, whichever of them occur.
        note: Called with a sentence for each conversion.

    Raises:
        InputError: If the file is missing, broken, or holds anything else.
    """
    suffix = path.suffix.lower()
    name = f"prediction {path}"
    if suffix == ".png":
        return _from_labels(name, path, shape, gt_prob, unknown, num_labels)
    if suffix in (".npy", ".npz"):
        array = read_array("prediction", path, "probabilities")
    elif suffix in (".tif", ".tiff"):
        array = _read_tiff(path, shape)
    else:
        raise InputError(
            f"{name} must be a .png, .npy, .npz, .tif or .tiff file, got {suffix or 'no suffix'}"
        )
    if array.ndim == 2 and array.dtype.kind in "iub":
        raise InputError(f"{name} holds labels, {array.dtype} {array.shape}; save these as PNG")
    if array.dtype in (np.uint8, np.uint16):
        array = _from_steps(name, array, note)
    array = check_probabilities(name, array, shape, note=note)
    image_files.check_label_count(name, array.shape[2])
    return Prediction(**vars(start_from_probabilities(name, array)))


def array_bytes(path: Path) -> int:
    """Return how many bytes the array in a file of probabilities takes, however compressed; 0 for a PNG.

    Where that cannot be told, since the file is missing or damaged, it is the size of the file, or 0.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return 0
    with suppress(Exception):  # which the reading itself explains
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return max((member.file_size for member in archive.infolist()), default=0)
        if suffix in (".tif", ".tiff"):
            with _refused_complaints(), import_extra("tifffile", "", "batch").TiffFile(path) as file:
                return sum(series.nbytes for series in file.series)
    return path.stat().st_size if path.is_file() else 0


def read_labels(role: str, path: Path, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Read labels (H, W), such as the ground truth of an image: a PNG whose pixel values they are, or .npy.

    Args:
        role: What they are called in messages.
        path: The file.
        shape: (H, W) of the image.

    Raises:
        InputError: If the file is missing, broken, of another size, or holds anything but integers.
    """
    if path.suffix.lower() == ".png":
        return image_files.read_label_picture(role, path, shape)[0].astype(np.int64)
    array = read_array(role, path, "labels")
    if array.dtype.kind not in "iub":
        raise InputError(f"{role} {path} must hold integers, got {array.dtype}; convert them first")
    if array.shape != shape:
        raise InputError(
            f"{role} {path} must have shape (H, W) = {shape} to match the image, got {array.shape}; save it "
            "in the image's size"
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{role} {path} goes up to {array.max()}; labels must fit into int64")
    return array.astype(np.int64)


def _from_labels(
    name: str,
    path: Path,
    shape: tuple[int, int],
    gt_prob: float,
    unknown: Collection[int],
    num_labels: int | None,
) -> Prediction:
    values, palette = image_files.read_label_picture("prediction", path, shape)
    labels = values.astype(np.int64)
    if num_labels is None:
        start = start_from_annotation(name, labels, unknown, gt_prob)
        return Prediction(**vars(start), palette=palette)
    labels[np.isin(values, list(unknown))] = -1
    highest = int(labels.max())
    if highest >= num_labels:
        raise InputError(
            f"{name} has label {highest}, but there are {num_labels} labels, from 0 to {num_labels - 1}, in "
            "the compatibility; give it a row and a column for each, or name values that say nothing with "
            "--unknown"
        )
    if highest < 0:
        raise InputError(f"{name}: all labels are unknown; label some of each class")
    with as_input_error(f"{name}: "):
        logits = hdcrf.logits_from_labels(torch.from_numpy(labels)[None], num_labels, gt_prob=gt_prob)[0]
    return Prediction(logits, labels, np.arange(num_labels), annotated=True, palette=palette)


def _from_steps(name: str, array: NDArray[Any], note: Note) -> NDArray[np.float32]:
    """Return probabilities that were rounded to 8 or 16 bits, with their sums made 1 again."""
    most = np.iinfo(array.dtype).max
    note(f"{name}: {array.dtype} taken as steps of 1/{most}")
    scaled = array.astype(np.float32) / np.float32(most)
    if scaled.ndim == 3:
        sums = scaled.sum(2, keepdims=True)
        # Each was off by half a step at most; other sums are for the check of probabilities to complain of.
        allowed = _SUM_TOLERANCE + scaled.shape[2] / 2 / most
        if sums.min(initial=1) > 0 and np.abs(sums - 1).max(initial=0) <= allowed:
            scaled /= sums
    return scaled


def _read_tiff(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the array of a TIFF file as (H, W, K)."""
    check_file("prediction", path)
    tifffile = import_extra("tifffile", f"prediction {path}", "batch")
    try:
        with _refused_complaints(), tifffile.TiffFile(path) as file:
            series = list(file.series)
            given = tuple(series[0].shape)
            apart = len(series) > 1 and all(each.shape == shape for each in series)  # added one by one
            if apart:
                given = (len(series), *shape)
            pages = len(given) == 3 and given[1:] == shape
            found = (*given[1:], given[0]) if pages else given
            if len(found) == 2:
                found = (*found, 1)
            if len(found) != 3 or found[:2] != shape:  # before it is decoded
                raise InputError(
                    f"prediction {path} must have a page of {shape[0]} rows and {shape[1]} columns for each "
                    f"label, or one page (H, W, K), to match the image; got {given}"
                )
            array: NDArray[Any] = (
                np.stack([each.asarray() for each in series]) if apart else series[0].asarray()
            )
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what it raises on a broken file depends on how it is broken
        if "imagecodecs" in str(error) or isinstance(error, ImportError):  # of a decoder
            raise InputError(
                f"prediction {path} cannot be read: {reason(error)}; pip install imagecodecs, or save it "
                "without compression"
            ) from error
        raise InputError(
            f"prediction {path} cannot be read: {reason(error)}; it may be damaged, save it again"
        ) from error
    return np.moveaxis(array, 0, 2) if pages else array.reshape(found)


class _Taker(logging.Handler):
    """Takes down what is logged in a thread that wants to know."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        complaints = getattr(_OWN, "complaints", None)
        if complaints is not None:
            complaints.append(record.getMessage())


_TAKER = _Taker(logging.ERROR)
_readers = 0  # how many threads want to know
_readers_lock = threading.Lock()


def _count_readers(more: int) -> None:
    """Take down what tifffile logs while some thread wants to know; then it goes where it went before."""
    global _readers
    with _readers_lock:
        _readers += more
        logger = logging.getLogger("tifffile")
        if _readers:
            logger.addHandler(_TAKER)  # once, however often
        else:
            logger.removeHandler(_TAKER)


@contextmanager
def _refused_complaints() -> Iterator[None]:
    """Raise what tifffile only logs, such as pages that are missing at the end of a truncated file."""
    complaints: list[str] = []
    _OWN.complaints = complaints
    _count_readers(1)
    try:
        yield
    finally:
        _count_readers(-1)
        _OWN.complaints = None
    if complaints:
        raise ValueError("; ".join(complaints))
