"""In place of `pydensecrf.utils`: unary energies, and features for pairwise ones.

What pydensecrf takes in silence and cannot mean is an error here: labels out of range, a missing sigma.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Number

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hdcrf.arrays import even_array, plain_value, real_array
from hdcrf.compat.inputs import deviations, divide, places
from voxel.checks import check_count, check_number

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> NDArray[np.float32]:
    """Return the unary energy of a labelling, each label of which is right with probability `gt_prob`.

    Args:
        labels: Integers of any shape, N in all: 1 … n_labels, with 0 for unknown; or, if not `zero_unsure`,
            0 … n_labels - 1.
        n_labels: K; 0 for unknown is not counted.
        gt_prob: Between 0 and 1.
        zero_unsure: Whether 0 means unknown, so that all labels are equally likely.

    Returns:
        (K, N) float32: -log of each label's probability, where the others share what is left.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If a label or `gt_prob` is out of range.
    """
    count = check_count("n_labels", n_labels, 1)
    gt_prob = check_number("gt_prob", plain_value("gt_prob", gt_prob))
    if not 0 < gt_prob < 1:
        raise ValueError(f"`gt_prob` must lie between 0 and 1, got {gt_prob}")
    array = even_array("labels", labels).ravel()
    if array.dtype.kind not in "iub":
        raise TypeError(f"`labels` must hold integers, got {array.dtype}; convert them with .astype(int)")
    least, most = (1, count) if zero_unsure else (0, count - 1)
    lowest, highest = (int(array.min()), int(array.max())) if array.size else (least, least)
    if lowest < min(least, 0) or highest > most:
        wrong = lowest if lowest < min(least, 0) else highest
        unknown = ", or be 0 for unknown" if zero_unsure else ""
        raise ValueError(f"`labels` must lie from {least} to {most}{unknown}, got {wrong}")
    other = -math.log((1 - gt_prob) / (count - 1)) if count > 1 else 0.0
    energy = np.full((count, array.size), other, dtype=np.float32)
    known = array != 0 if zero_unsure else np.ones(array.shape, dtype=bool)
    energy[array[known].astype(np.int64) - least, np.flatnonzero(known)] = -math.log(gt_prob)
    energy[:, ~known] = math.log(count)
    return energy


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> NDArray[np.float32]:
    """Return `unary_from_labels`, under its older name."""
    _warn("compute_unary", "unary_from_labels")
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: ArrayLike, scale: float | None = None, clip: float | None = 1e-5
) -> NDArray[np.float32]:
    """Return the unary energy of a network's probabilities.

    Args:
        sm: (K, …) with N places in all.
        scale: How far to trust them, up to 1: they are mixed with 1 - scale of the uniform distribution.
        clip: What smaller probabilities are raised to, as the logarithm of 0 is infinite (and larger ones
            than 1 lowered to that); None leaves them.

    Returns:
        (K, N) float32, -log P.

    Raises:
        TypeError: If `sm` does not hold real numbers.
        ValueError: If it has no labels, or a number is out of range.
    """
    probabilities = real_array("sm", sm)
    if probabilities.ndim == 0 or len(probabilities) == 0:
        raise ValueError(f"`sm` must have shape (K, …) with K of at least 1, got {probabilities.shape}")
    probabilities = probabilities.reshape(len(probabilities), -1)
    lowest = float(probabilities.min()) if probabilities.size else 0.0
    if math.isnan(lowest) or (clip is None and lowest < 0):
        raise ValueError(f"`sm` must hold probabilities, 0 or greater, got {lowest:.6g}; look at its source")
    if scale is not None:
        scale = check_number("scale", plain_value("scale", scale))
        if not 0 < scale <= 1:
            raise ValueError(f"`scale` must be above 0 and at most 1, got {scale}")
        probabilities = scale * probabilities + (1 - scale) / len(probabilities)
    if clip is not None:
        least = check_number("clip", plain_value("clip", clip))
        probabilities = np.clip(probabilities, least, 1.0)
    with np.errstate(divide="ignore"):  # without `clip`, the energy of what is excluded is infinite
        return -np.log(probabilities).astype(np.float32)


def softmax_to_unary(sm: ArrayLike, GT_PROB: float = 1) -> NDArray[np.float32]:
    """Return `unary_from_softmax` without `clip`, under its older name."""
    _warn("softmax_to_unary", "unary_from_softmax")
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the features of a kernel in position alone.

    Args:
        sdims: The standard deviation along each axis, d of them.
        shape: The length of each axis; N in all.

    Returns:
        (d, N) float32: the index along each axis, divided by its standard deviation.

    Raises:
        TypeError: If `shape` is a number.
        ValueError: If they differ in number, or a standard deviation is not positive.
    """
    if isinstance(plain_value("shape", shape), Number):
        raise TypeError(f"`shape` must be a sequence of lengths, got {shape}; for one axis, ({shape},)")
    lengths = [check_count(f"shape[{axis}]", length, 0) for axis, length in enumerate(shape)]
    features = places(deviations("sdims", sdims, len(lengths), "axes"), lengths)
    return features.reshape(len(lengths), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: ArrayLike, chdim: int = -1
) -> NDArray[np.float32]:
    """Return the features of a kernel in position and colour.

    Args:
        sdims: The standard deviation along each axis of the picture, d of them.
        schan: That of the channels: one number, or one for each of the c channels. As in pydensecrf, 1 stands
            for each that is missing here or in `sdims`, with a warning.
        img: A picture of any number of axes and channels, with N places.
        chdim: The axis of the channels; -1 if there is none.

    Returns:
        (d + c, N) float32: the index along each axis and the channels, divided by their deviations.

    Raises:
        TypeError: If `img` does not hold real numbers.
        ValueError: If the numbers of deviations, axes and channels do not fit.
    """
    picture = real_array("img", img)
    if chdim == -1:
        channels = picture[np.newaxis].astype(np.float32)
    else:
        axis = check_count("chdim", chdim, -picture.ndim, picture.ndim - 1)
        channels = np.moveaxis(picture, axis, 0).astype(np.float32)
    lengths = channels.shape[1:]
    colours = deviations("schan", schan, len(channels), "channels", fewer=True)
    divide(channels, colours)
    positions = places(deviations("sdims", sdims, len(lengths), "axes", fewer=True), lengths)
    return np.concatenate([positions, channels]).reshape(len(lengths) + len(channels), -1)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated, as it is in pydensecrf; use {new}", DeprecationWarning, stacklevel=3)
