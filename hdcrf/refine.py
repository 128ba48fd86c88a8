"""Refining one labelling, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hdcrf.dense_crf import DenseCRF
from hdcrf.potentials import logits_from_labels, logits_from_probabilities
from voxel.backend import kernels, uses_native
from voxel.checks import check_finite

__all__ = ["refine"]

_MOST_UNSAID_LABELS = 255


def refine(
    image: NDArray[Any],
    *,
    probabilities: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    num_labels: int | None = None,
    gt_prob: float = 0.7,
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
        labels: (H, W) integers 0 … K-1, with -1 for unknown pixels.
        num_labels: K, where `labels` are given; by default their largest, plus one. Labels above 254 need
            it said: they often mark pixels to be ignored, which are -1 here.
        gt_prob: How far to trust a given label: its probability, the others sharing the rest.
        iterations: Iterations of mean field.
        return_marginals: Whether to return the marginals instead of the labels.
        progress: Called with the number of iterations done, after each.
        **options: Any of DenseCRF's options: weights, sigmas, compatibility (also as an array),
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
    if probabilities is not None:
        if num_labels is not None:
            raise ValueError("`num_labels` goes with `labels`; `probabilities` say it by their shape")
        logits = _probability_logits(probabilities, height, width)
    else:
        logits = _label_logits(labels, height, width, num_labels, gt_prob)
    for owned in ("learn", "output"):
        if owned in options:
            raise TypeError(f"refine() does not take `{owned}`; use DenseCRF to train")
    if isinstance(options.get("compatibility"), np.ndarray):
        options["compatibility"] = torch.from_numpy(
            _real_array("compatibility", options["compatibility"]).astype(np.float32)
        )
    crf = DenseCRF(logits.shape[1], iterations=iterations, learn=(), **options)
    with torch.inference_mode():
        result = crf.infer(logits, guide, return_logits=False, progress=progress)
    marginals = result.marginals[0].permute(1, 2, 0)
    if return_marginals:
        return marginals.contiguous().numpy()
    return _most_likely(marginals, crf.backend).numpy()


def _most_likely(marginals: Tensor, backend: str) -> Tensor:
    """Return the (H, W) labels of the largest (H, W, K) marginals."""
    if not uses_native(backend, marginals):
        return marginals.argmax(2)
    labels = torch.empty(marginals.shape[:2], dtype=torch.int64)
    rows = marginals.reshape(-1, marginals.shape[2])
    kernels().argmax(rows, labels.view(-1), torch.get_num_threads())
    return labels


def _guide(image: NDArray[Any]) -> Tensor:
    array = _real_array("image", image)
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
    array = _real_array("probabilities", probabilities)
    if array.ndim != 3 or array.shape[:2] != (height, width) or array.shape[2] == 0:
        raise ValueError(
            f"`probabilities` must have shape (H, W, K) = ({height}, {width}, K) to match `image`, with K of "
            f"at least 1, got {array.shape}"
        )
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    # Over the last axis, as the caller sees it, so that the messages name the right one.
    return logits_from_probabilities(values, dim=2).permute(2, 0, 1)[None]


def _label_logits(
    labels: NDArray[Any] | None, height: int, width: int, num_labels: int | None, gt_prob: float
) -> Tensor:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`labels` must hold integers, got {array.dtype}; convert them with .astype(int)")
    if array.shape != (height, width):
        raise ValueError(
            f"`labels` must have shape (H, W) = ({height}, {width}) to match `image`, got {array.shape}"
        )
    highest = int(array.max())
    if num_labels is None:
        num_labels = highest + 1
        if num_labels < 1:
            raise ValueError("`labels` are all -1, unknown; give at least one label, or `num_labels`")
        if num_labels > _MOST_UNSAID_LABELS:
            raise ValueError(
                f"`labels` go up to {highest}, which would make {num_labels} classes; set ignored pixels to "
                f"-1, or say num_labels={num_labels}"
            )
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    return logits_from_labels(values[None], num_labels, gt_prob=gt_prob)


def _real_array(name: str, value: NDArray[Any]) -> NDArray[Any]:
    if isinstance(value, Tensor):
        raise TypeError(
            f"`{name}` must be a NumPy array, got a tensor; use .numpy(), or DenseCRF for tensors"
        )
    array = np.asarray(value)
    if array.dtype.kind not in "iufb":
        raise TypeError(f"`{name}` must be an array of real numbers, got dtype {array.dtype}")
    return array
