"""What trains Gaussian CRFs: a margin between labels; similarities and embeddings that tell them apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.gaussian.bipartite_grid import connections_of, pairs
from hdcrf.layer_inputs import working_precision
from voxel.checks import INTEGER_DTYPES, check_count, check_finite, check_number, check_tensor
from voxel.precision import full_precision

__all__ = ["affinity_loss", "margin_loss", "similarity_loss"]


@full_precision
def margin_loss(scores: Tensor, labels: Tensor, *, margin: float = 0.5, ignore_index: int = -1) -> Tensor:
    """Return the mean over labelled pixels of -min(0, y_l - max_{k≠l} y_k - T).

    It is zero where the true label's score y_l exceeds all others by the margin T.

    Args:
        scores: y (B, K, *S) float32 or float64, K of 2 or more. Half precision is computed in float32.
        labels: l (B, *S) integers 0 … K-1, or `ignore_index`.
        margin: T.
        ignore_index: The label of pixels to leave out.

    Returns:
        One number; 0, with gradients of 0, if no pixel is labelled.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.

    Differentiable in the scores; where several labels share the largest other score, so does the gradient.

    Reference: Vemulapalli et al., CVPR 2016, eq. 6; T = 0.5 in section 5.
    """
    y = working_precision(scores, "scores")
    if y.dim() < 2 or y.shape[1] < 2:
        raise ValueError(f"`scores` must have shape (B, K, *S) with K of at least 2, got {tuple(y.shape)}")
    check_finite("scores", y)
    threshold = check_number("margin", margin)
    known, labels = _checked_labels(labels, (y.shape[0], *y.shape[2:]), y, "scores", ignore_index, y.shape[1])
    index = labels[:, None]
    others = y.scatter(1, index, -math.inf).amax(1)
    lacking = functional.relu(threshold - (y.gather(1, index)[:, 0] - others))
    return _mean(lacking, known)


@full_precision
def similarity_loss(
    similarity: Tensor, labels: Tensor, *, threshold: float = math.exp(-10), ignore_index: int = -1
) -> Tensor:
    """Return the mean over labelled pairs of -[l_i = l_j] s_ij + [l_i ≠ l_j] max(0, s_ij - h).

    The pairs are the connected ones, of which both pixels are labelled.
    Similarities of like labels are pushed up, and those of different labels down, until they are below h. The
    paper prints min(0, s_ij - h), which would do nothing above h and push down below it; its text asks for
    what is above.

    Args:
        similarity: s (B, E, H, W), as `pixel_similarity` or `GaussianMeanFieldNetwork.similarity` returns it.
        labels: l (B, H, W) integers 0 or greater, or `ignore_index`.
        threshold: h, e⁻¹⁰ in the paper.
        ignore_index: The label of pixels to leave out.

    Returns:
        One number, -1 at best; 0, with gradients of 0, if no two connected pixels are labelled.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.

    Reference: Vemulapalli et al., CVPR 2016, eq. 7.
    """
    s = working_precision(similarity, "similarity")
    if s.dim() != 4 or 0 in s.shape:
        raise ValueError(f"`similarity` must have shape (B, E, H, W) with no size of 0, got {tuple(s.shape)}")
    offsets = connections_of(s)
    check_finite("similarity", s)
    limit = check_number("threshold", threshold)
    batch, _, height, width = s.shape
    known, labels = _checked_labels(labels, (batch, height, width), s, "similarity", ignore_index, None)
    counted, alike = (torch.zeros(s.shape, dtype=torch.bool, device=s.device) for _ in range(2))
    for connection, (upper, lower) in enumerate(pairs(offsets, height, width)):
        counted[:, connection][upper] = known[upper] & known[lower]
        alike[:, connection][upper] = labels[upper] == labels[lower]
    return _mean(torch.where(alike, -s, functional.relu(s - limit)), counted)


@full_precision
def affinity_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    threshold: float | Tensor = 0.0,
    pairs: int = 4096,
    ignore_index: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a cross-entropy that makes the terms of the true labels of two pixels the least.

    For random pairs of labelled pixels p, q of an item, the labels' terms ⟨e_p(l), e_q(m)⟩, as costs, are the
    negative logits of a choice among all L² pairs of labels. Where labels share the terms, disagreement costs
    ⟨ψ_p, ψ_q⟩ and agreement a threshold, and the choice is between the two. This is the second phase of the
    training in Chandra 2018, sections 3.3 and 4.3: after the unary network's, and before both are trained
    together.

    Args:
        embeddings: (B, D, L, *S), or (B, D, *S) where labels share them, with S of as many axes as in
            `labels`. For the temporal embeddings of a video S is (T, H, W); for the spatial ones, give frames
            as items.
        labels: (B, *S) integers.
        threshold: Of shared terms, that above which two pixels are taken to be of one label. It can be
            learned, as it must where embeddings are probabilities, along with a factor on them.
        pairs: How many pairs to draw for each item, uniformly, with replacement.
        ignore_index: Pixels of this label are in no pair.
        generator: Of random numbers, on the labels' device.

    Returns:
        The mean over pairs, a scalar; 0 if no item has a labelled pixel.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes do not match, an entry is not finite, or a label is out of range.

    Differentiable in the embeddings.
    """
    e = working_precision(embeddings, "embeddings")
    check_finite("embeddings", e)
    check_count("pairs", pairs, 1)
    axes = check_tensor("labels", labels).dim() - 1
    shared = e.dim() == axes + 2
    if e.dim() not in (axes + 2, axes + 3) or axes < 1 or 0 in e.shape:
        raise ValueError(
            "`embeddings` must have shape (B, D, L, *S), or (B, D, *S) where labels share them, with no size "
            f"of 0, for `labels` (B, *S), got {tuple(e.shape)} and {tuple(labels.shape)}"
        )
    count = 1 if shared else e.shape[2]
    known, truth = _checked_labels(
        labels, (e.shape[0], *e.shape[-axes:]), e, "embeddings", ignore_index, None if shared else count
    )
    known, truth = known.flatten(1), truth.flatten(1)
    rows = known.any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return e.sum() * 0
    # The n-th of the labelled pixels of each item, for random n: these come first when sorted.
    order = known[rows].to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    numbers = torch.rand((2, len(rows), pairs), generator=generator, device=e.device, dtype=torch.float64)
    picks = (numbers * known[rows].sum(1)[:, None]).long()
    first, second = (order.gather(1, pick) for pick in picks)
    left, right = truth[rows].gather(1, first), truth[rows].gather(1, second)
    if shared:
        e = e.flatten(2)[rows]  # (b, D, P)
        products = (_at(e, first) * _at(e, second)).sum(1) - threshold
        return functional.binary_cross_entropy_with_logits(products, (left == right).to(products))
    e = e.flatten(3)[rows].flatten(1, 2)  # (b, D·L, P)
    parts = [_at(e, index).reshape(len(e), -1, count, pairs) for index in (first, second)]
    costs = torch.einsum("bdlp,bdmp->blmp", *parts)  # (b, L, L, pairs)
    return functional.cross_entropy(-costs.flatten(1, 2), left * count + right)


def _at(embeddings: Tensor, index: Tensor) -> Tensor:
    """Return embeddings (b, D, P) at the pixels (b, pairs)."""
    return embeddings.gather(2, index[:, None].expand(-1, embeddings.shape[1], -1))


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum() / counted.sum().clamp(min=1)


def _checked_labels(
    labels: object, shape: tuple[int, ...], like: Tensor, name: str, ignore_index: int, count: int | None
) -> tuple[Tensor, Tensor]:
    """Return which pixels are labelled, and the labels with 0 for those that are not, or raise."""
    tensor = check_tensor("labels", labels)
    if tensor.dtype not in INTEGER_DTYPES:
        raise TypeError(f"`labels` must hold integers, got {tensor.dtype}; convert it with .long()")
    if tensor.shape != shape:
        raise ValueError(
            f"`labels` must have shape {shape}, a label for each pixel of `{name}`, got {tuple(tensor.shape)}"
        )
    if tensor.device != like.device:
        raise ValueError(f"`labels` must be on the device of `{name}`, {like.device}, got {tensor.device}")
    check_count("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    tensor = tensor.long()
    known = tensor != ignore_index
    bad = known & ((tensor < 0) if count is None else (tensor < 0) | (tensor >= count))
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        expected = "0 or greater" if count is None else f"from 0 to {count - 1}"
        raise ValueError(
            f"`labels` must be {expected}, or {ignore_index} to be left out, got {int(tensor[place])} at "
            f"index {place}"
        )
    return known, torch.where(known, tensor, 0)
