"""How well labels match the truth."""

from __future__ import annotations

import numpy as np

from .noise import Array


def mean_iou(labels: Array, truth: Array, num_classes: int) -> float:
    """Return the mean over the classes of intersection over union, as a share of 1.

    Args:
        labels: Any shape, 0 … K-1, with -1 for unknown, which matches nothing.
        truth: The same shape, 0 … K-1.
        num_classes: K; classes that neither has are left out.
    """
    ious = []
    for label in range(num_classes):
        found, there = labels == label, truth == label
        union = (found | there).sum()
        if union:
            ious.append((found & there).sum() / union)
    return float(np.mean(ious))


def flicker(labels: Array, truth: Array) -> Array:
    """Return for each frame but the first the share of pixels whose label changes though its truth does not.

    Args:
        labels: (T, H, W).
        truth: (T, H, W).

    Returns:
        (T - 1,) shares of 1.
    """
    changed = (labels[1:] != labels[:-1]) & (truth[1:] == truth[:-1])
    return changed.mean((1, 2))
