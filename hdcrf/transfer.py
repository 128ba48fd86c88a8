"""Carrying labels from one set of points to another, through the feature space that both are lifted into."""

from __future__ import annotations

import torch
from torch import Tensor

from hdcrf.gaussian_filter import build_filter
from hdcrf.potentials import UNKNOWN
from voxel.checks import (
    INTEGER_DTYPES,
    check_count,
    check_finite,
    check_flag,
    check_matrix,
    check_same_kind,
    check_tensor,
)
from voxel.voxel_grid import LARGEST_LINEAR_DIMENSION

__all__ = ["transfer_labels"]


def transfer_labels(
    features: Tensor,
    labels: Tensor,
    query: Tensor,
    *,
    num_labels: int | None = None,
    return_probabilities: bool = False,
    batch: Tensor | None = None,
    query_batch: Tensor | None = None,
    method: str = "permutohedral",
    order: int = 1,
    halo: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Give each query the label that the points around it carry, weighted by the Gaussian of their distance.

    From sparse annotated points to a dense cloud, from one frame to the next, from a coarse grid to a fine
    one: whatever both sides can be lifted into.

    Args:
        features: (N, d) of the labelled points, already divided by their standard deviations.
        labels: (N,) integers 0 … K-1, with -1 for unknown, which carry nothing; or (N, K) probabilities, or
            any weights of 0 and more.
        query: (M, d) features of the points to be labelled.
        num_labels: K, where `labels` are integers; by default their largest, plus one.
        return_probabilities: Whether to return probabilities instead of labels.
        batch: (N,) integers; points do not see queries of another batch.
        query_batch: (M,), needed exactly if `batch` is given.
        method: "permutohedral", "voxel" or "exact".
        order: Accuracy of the fast methods, 1 to 16.
        halo: Accuracy, 0 to 8, and how far labels reach: a query that no labelled point reaches stays
            unknown. By default 1; 0 for "voxel" in more than 6 dimensions, which crosses gaps by itself.
        backend: Of the fast methods: "auto", "reference" or "native".

    Returns:
        (M,) int64 labels, -1 where nothing reaches; or (M, K) probabilities, all alike where nothing reaches.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.

    The probabilities are differentiable in features, query, and (N, K) labels.
    """
    check_matrix("features", features, "(N, d)")
    check_flag("return_probabilities", return_probabilities)
    check_matrix("query", query, "(M, d)")
    weights = _weights(features, labels, num_labels)
    if halo is None:
        halo = 0 if method == "voxel" and features.shape[1] > LARGEST_LINEAR_DIMENSION else 1
    operator = build_filter(features, method=method, batch=batch, order=order, halo=halo, backend=backend)
    carried = operator.filter(weights, query=query, query_batch=query_batch)
    total = carried.sum(1, keepdim=True)
    reached = total > 0
    if not return_probabilities:
        return carried.argmax(1).masked_fill_(~reached[:, 0], UNKNOWN)
    return torch.where(reached, carried / torch.where(reached, total, 1), 1 / carried.shape[1])


def _weights(features: Tensor, labels: Tensor, num_labels: int | None) -> Tensor:
    """Return the (N, K) weight of each label at each point."""
    check_tensor("labels", labels)
    if labels.device != features.device:
        raise ValueError(f"`labels` must be on {features.device}, as the features are, got {labels.device}")
    if labels.dtype.is_floating_point:
        if num_labels is not None:
            raise ValueError("`num_labels` goes with labels as integers; probabilities say it by their shape")
        check_matrix("labels", labels, "(N, K)", rows=len(features))
        check_same_kind("labels", labels, "features", features)
        check_finite("labels", labels)
        if labels.shape[1] == 0:
            raise ValueError("`labels` must have a column for each label, got none")
        if labels.numel() and float(labels.detach().min()) < 0:
            raise ValueError(f"`labels` must be 0 or greater, got {float(labels.detach().min()):.6g}")
        return labels
    if labels.dtype not in INTEGER_DTYPES:
        raise TypeError(f"`labels` must hold integers or probabilities, got {labels.dtype}")
    if labels.shape != (len(features),):
        raise ValueError(
            f"`labels` must have shape ({len(features)},), one for each of the features, or "
            f"({len(features)}, K), got {tuple(labels.shape)}"
        )
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if num_labels is None:
        if high < 0 or not len(labels):
            raise ValueError("`labels` are all -1, unknown; give at least one label, or `num_labels`")
        num_labels = high + 1
    check_count("num_labels", num_labels, 1)
    if low < UNKNOWN or high >= num_labels:
        wrong = low if low < UNKNOWN else high
        raise ValueError(f"`labels` must lie from 0 to {num_labels - 1}, or be -1 for unknown, got {wrong}")
    classes = torch.arange(num_labels, device=labels.device)
    return (labels[:, None] == classes).to(features.dtype)
