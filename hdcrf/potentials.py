"""Unary potentials: where the labelling starts from, as logits (log-probabilities up to a constant).

The unary potential of the energy is ψ_i(l) = -log P_i(l).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxel.checks import (
    INTEGER_DTYPES,
    check_count,
    check_finite,
    check_floating,
    check_held,
    check_number,
    check_tensor,
)

__all__ = [
    "labels_from_annotation",
    "logits_from_labels",
    "logits_from_probabilities",
]

UNKNOWN = -1
MOST_LABELS = 1 << 16
"""Of each label there is a logit at each pixel: more would not fit into memory."""
_SUM_TOLERANCE = 0.01
_SUM_ROUNDING = 1e-6  # sums this close to 1 are left as they are


def logits_from_probabilities(probabilities: Tensor, *, dim: int = 1, floor: float = 1e-6) -> Tensor:
    """Return the logarithm of probabilities.

    Args:
        probabilities: Any shape, with the labels along `dim`; 0 or greater, summing to 1 within 0.01 (they
            are normalised, so that quantised probabilities may be used).
        dim: The dimension of the labels.
        floor: Probabilities below it are raised to it, so that no label is excluded beyond return. At least
            1.2e-38 in float32.

    Returns:
        Logits, of the same shape and dtype.

    Raises:
        ValueError: If a probability is negative, not finite, or a sum is off.
    """
    check_floating("probabilities", probabilities)
    if not 0 < check_number("floor", floor) < 1:
        raise ValueError(f"`floor` must lie between 0 and 1, got {floor}")
    least = torch.finfo(probabilities.dtype).tiny
    if floor < least:
        raise ValueError(
            f"`floor` must be at least {least:.3g}, the least that {probabilities.dtype} holds in full, "
            f"got {floor}"
        )
    check_held("probabilities", probabilities)
    if probabilities.numel() == 0:
        return probabilities
    lowest, highest = (float(bound) for bound in torch.aminmax(probabilities.detach()))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        check_finite("probabilities", probabilities)
    if lowest < 0:
        raise ValueError(
            f"`probabilities` must be 0 or greater, got {lowest:.6g}; pass logits to DenseCRF instead"
        )
    sums = probabilities.sum(dim, keepdim=True)
    low, high = float(sums.detach().min()), float(sums.detach().max())
    if low < 1 - _SUM_TOLERANCE or high > 1 + _SUM_TOLERANCE:
        raise ValueError(
            f"`probabilities` must sum to 1 over the labels (axis {dim}), got sums from {low:.6g} to "
            f"{high:.6g}; divide by the sum, or check that the labels lie along axis {dim}"
        )
    if probabilities.requires_grad or max(1 - low, high - 1) > _SUM_ROUNDING:
        probabilities = probabilities / sums
    raised = probabilities.clamp_min(floor)
    return raised.log() if raised.requires_grad else raised.log_()


def logits_from_labels(
    labels: Tensor, num_labels: int, *, gt_prob: float = 0.7, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn a labelling into logits, trusting each label with probability `gt_prob`.

    The other labels share the rest equally, and an unknown pixel has all labels equally likely: the
    convention of Krähenbühl and Koltun's code.

    Args:
        labels: (B, *S) integers: 0 … num_labels - 1, or -1 for unknown.
        num_labels: K, 1 to 65,536.
        gt_prob: Probability that a given label is right, above 1/K and below 1.
        dtype: Of the result.

    Returns:
        (B, K, *S) logits.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If a label is out of range, or `gt_prob` is.
    """
    check_tensor("labels", labels)
    check_count("num_labels", num_labels, 1, MOST_LABELS)
    if labels.dtype not in INTEGER_DTYPES:
        raise TypeError(f"`labels` must hold integers, got {labels.dtype}; convert them with .long()")
    check_held("labels", labels)
    if not 1 / num_labels < check_number("gt_prob", gt_prob) < 1 and num_labels > 1:
        raise ValueError(
            f"`gt_prob` must lie between 1/{num_labels} (no better than chance) and 1, got {gt_prob}"
        )
    if labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < UNKNOWN or high >= num_labels:
            wrong = low if low < UNKNOWN else high
            raise ValueError(
                f"`labels` must lie from 0 to {num_labels - 1}, or be -1 for unknown, got {wrong}; "
                "set ignored pixels to -1"
            )
    if num_labels == 1:
        return torch.zeros((labels.shape[0], 1, *labels.shape[1:]), dtype=dtype, device=labels.device)
    given, other = math.log(gt_prob), math.log((1 - gt_prob) / (num_labels - 1))
    classes = torch.arange(num_labels, device=labels.device).view(-1, *[1] * (labels.dim() - 1))
    spread = labels[:, None]
    logits = torch.where(spread == classes, given, other)
    return torch.where(spread == UNKNOWN, -math.log(num_labels), logits).to(dtype)


def labels_from_annotation(
    annotation: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read an annotation picture: black is unknown, and every other colour is a class.

    Args:
        annotation: (H, W, 3) uint8.

    Returns:
        labels: (H, W) int64, -1 for unknown; classes are numbered by their colour (r, g, b), ascending.
        colours: (K, 3) uint8, the colour of each class.

    Raises:
        TypeError: If the annotation is not uint8.
        ValueError: If it has another shape, or is all black.
    """
    if isinstance(annotation, np.ma.MaskedArray):
        raise TypeError(
            "`annotation` must have no mask, got a masked array; use .filled(0), as black is unknown"
        )
    if not isinstance(annotation, np.ndarray) or annotation.dtype != np.uint8:
        kind = annotation.dtype if isinstance(annotation, np.ndarray) else type(annotation).__name__
        raise TypeError(f"`annotation` must be a uint8 array, got {kind}")
    if annotation.ndim != 3 or annotation.shape[2] != 3:
        raise ValueError(f"`annotation` must have shape (H, W, 3), got {annotation.shape}")
    packed = annotation.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    codes, inverse = np.unique(packed, return_inverse=True)
    labels = inverse.reshape(packed.shape).astype(np.int64)
    if codes.size and codes[0] == 0:
        codes, labels = codes[1:], labels - 1
    if codes.size == 0:
        raise ValueError(
            "`annotation` is all black, which means unknown everywhere; draw at least one class in a colour"
        )
    colours = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], 1).astype(np.uint8)
    return labels, colours
