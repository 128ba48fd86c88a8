"""Refining one labelling, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hdcrf.arrays import even_array, plain_value, real_array
from hdcrf.dense_crf import DenseCRF
from hdcrf.potentials import UNKNOWN, logits_from_labels, logits_from_probabilities
from voxel.backend import kernels, uses_native
from voxel.checks import check_count, check_finite, check_flag
from voxel.memory import new_large

__all__ = ["most_likely", "refine"]

MOST_ITERATIONS = 1_000_000
"""Far more than mean field needs; a larger number is a mistake, and would take days."""

_MOST_UNSAID_LABELS = 255
_GT_PROB = 0.7
_OWNED = ("learn", "output")
_OPTIONS = tuple(
    name
    for name in inspect.signature(DenseCRF).parameters
    if name not in ("num_labels", "iterations", *_OWNED)
)


def refine(
    image: NDArray[Any],
    *,
    probabilities: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    num_labels: int | None = None,
    gt_prob: float = _GT_PROB,
    iterations: int = 10,
    return_marginals: bool = False,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> NDArray[Any]:
    """Refine a labelling of a photo so that it follows the photo's edges.

    Args:
        image: (H, W, 3) uint8, or (H, W) or (H, W, c) of any real dtype; `appearance_sigma_rgb` is in its
            units, 13 by default, which suits 0 to 255.
        probabilities: (H, W, K) for each label, summing to 1; give these or `labels`.
        labels: (H, W) integers 0 … K-1, with -1 for unknown pixels; in a masked array the masked are unknown.
        num_labels: K, at most 65,536, where `labels` are given; by default their largest, plus one. Labels
            above 254 need it said: they often mark pixels to be ignored, which are -1 here.
        gt_prob: How far to trust a given label: its probability, the others sharing the rest.
        iterations: Iterations of mean field, 0 to 1,000,000.
        return_marginals: Whether to return the marginals instead of the labels.
        progress: Called with the number of iterations done, after each.
        **options: Any of DenseCRF's options: weights, sigmas, compatibility (also as an array or lists),
            normalization, accuracy.

    Returns:
        (H, W) int64 labels, or (H, W, K) float32 marginals. Everything is computed in float32.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not match, or an entry is out of range or not finite.

    Example:
        >>> labels = refine(photo, probabilities=probabilities)
        >>> labels = refine(photo, labels=strokes)
    """
    guide = _guide(image)
    height, width = guide.shape[2:]
    if (probabilities is None) == (labels is None):
        raise ValueError(
            "give either `probabilities` or `labels`, got " + ("neither" if probabilities is None else "both")
        )
    options = _checked_options(options)
    iterations = check_count("iterations", plain_value("iterations", iterations), 0, MOST_ITERATIONS)
    return_marginals = check_flag("return_marginals", plain_value("return_marginals", return_marginals))
    if progress is not None and not callable(progress):
        raise TypeError(
            f"`progress` must be a function of the iterations done, or None, got {type(progress).__name__}"
        )
    if probabilities is not None:
        if num_labels is not None:
            raise ValueError("`num_labels` goes with `labels`; `probabilities` say it by their shape")
        if gt_prob != _GT_PROB:
            raise ValueError("`gt_prob` goes with `labels`; `probabilities` say how far to trust them")
        logits = _probability_logits(probabilities, height, width)
    else:
        count, trust = plain_value("num_labels", num_labels), plain_value("gt_prob", gt_prob)
        logits = _label_logits(labels, height, width, count, trust)
    crf = DenseCRF(logits.shape[1], iterations=iterations, learn=(), **options)
    with torch.inference_mode():
        result = crf.infer(logits, guide, return_logits=False, progress=progress)
    marginals = result.marginals[0].permute(1, 2, 0)
    if return_marginals:
        return marginals.contiguous().numpy()
    return most_likely(marginals, crf.backend).numpy()


def most_likely(marginals: Tensor, backend: str) -> Tensor:
    """Return the (*S) labels of the largest (*S, K) marginals."""
    if not uses_native(backend, marginals):
        return marginals.argmax(-1)
    labels = new_large(marginals, marginals.shape[:-1], torch.int64)
    rows = marginals.reshape(-1, marginals.shape[-1])
    kernels().argmax(rows, labels.view(-1), torch.get_num_threads())
    return labels


def _guide(image: NDArray[Any]) -> Tensor:
    array = real_array("image", image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise ValueError(f"`image` must have shape (H, W, 3), (H, W) or (H, W, c), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"`image` must not be empty, got shape {np.shape(image)}")
    values = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))
    check_finite("image", values.permute(1, 2, 0))
    return values[None]


def _probability_logits(probabilities: NDArray[Any], height: int, width: int) -> Tensor:
    array = real_array("probabilities", probabilities)
    if array.ndim != 3 or array.shape[:2] != (height, width) or array.shape[2] == 0:
        raise ValueError(
            f"`probabilities` must have shape (H, W, K) = ({height}, {width}, K) to match `image`, with K of "
            f"at least 1, got {array.shape}"
        )
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    # Over the last axis, as the caller sees it, so that the messages name the right one.
    return logits_from_probabilities(values, dim=2).permute(2, 0, 1)[None]


def _label_logits(labels: Any, height: int, width: int, num_labels: int | None, gt_prob: float) -> Tensor:
    array = even_array("labels", labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`labels` must hold integers, got {array.dtype}; convert them with .astype(int)")
    if array.shape != (height, width):
        raise ValueError(
            f"`labels` must have shape (H, W) = ({height}, {width}) to match `image`, got {array.shape}"
        )
    values = _signed(labels)
    if num_labels is None:
        num_labels = _unsaid_count(int(values.max()))
    return logits_from_labels(torch.from_numpy(values)[None], num_labels, gt_prob=gt_prob)


def _signed(labels: Any) -> NDArray[np.int64]:
    """Return labels as int64, with -1 where they are masked."""
    masked = np.ma.getmaskarray(np.asanyarray(labels))
    array = np.where(masked, 0, np.asarray(labels))
    highest = int(array.max())
    if highest > np.iinfo(np.int64).max:  # would wrap around, perhaps to -1
        raise ValueError(
            f"`labels` must lie from 0 to K-1, or be -1 for unknown, got {highest}; set ignored pixels to -1"
        )
    return np.where(masked, UNKNOWN, array.astype(np.int64))


def _unsaid_count(highest: int) -> int:
    """Return how many labels there are, judging by the largest."""
    if highest < 0:
        raise ValueError("`labels` are all -1, unknown; give at least one label, or `num_labels`")
    if highest >= _MOST_UNSAID_LABELS:
        raise ValueError(
            f"`labels` go up to {highest}, which would make {highest + 1} classes; set ignored pixels to "
            f"-1, or say num_labels={highest + 1}"
        )
    return highest + 1


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for DenseCRF, with plain numbers and a tensor where they came as arrays or lists."""
    for name in options:
        if name in _OWNED:
            raise TypeError(f"refine() does not take `{name}`; use DenseCRF to train")
        if name not in _OPTIONS:
            raise TypeError(f"refine() has no option `{name}`; it has {', '.join(_OPTIONS)}")
    checked = {name: plain_value(name, value) for name, value in options.items()}
    if "exclude_self" in checked:
        check_flag("exclude_self", checked["exclude_self"])
    costs = checked.get("compatibility", "potts")
    if not isinstance(costs, str | Tensor):
        checked["compatibility"] = torch.from_numpy(real_array("compatibility", costs).astype(np.float32))
    return checked
