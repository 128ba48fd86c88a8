"""The pairwise terms of one pixel with all others, and the loss that trains terms before inference is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.gaussian.inference import PairwiseTerms
from voxel.checks import INTEGER_DTYPES, check_count, check_finite, check_floating, check_tensor

__all__ = ["affinity", "affinity_loss"]


@torch.no_grad()
def affinity(
    terms: PairwiseTerms, pixel: Sequence[int], *, label: int | None = None, item: int = 0
) -> Tensor:
    """Return the pairwise terms of a reference pixel with all pixels: a column of the matrix.

    Args:
        terms: Terms over a grid: of an image, or of a video.
        pixel: (row, column) of the reference; (frame, row, column) in a video.
        label: The label that the reference takes; None where labels share the terms.
        item: Of the batch.

    Returns:
        (*S,) where labels share the terms, else (L, *S): a map for each label that the other pixel takes.

    Raises:
        TypeError: If an argument has the wrong type. ValueError: If `pixel` or `label` lies outside, or a
        label is given for shared terms or lacks for others.

    Reference: Chandra 2018, Figs. 3.3 to 3.6 and 4.3, which show such maps.
    """
    grid = getattr(terms, "grid", None)
    if not isinstance(terms, PairwiseTerms) or grid is None:
        raise TypeError(f"`terms` must be pairwise terms over one grid, got {type(terms).__name__}")
    check_count("item", item, 0, terms.batch_size - 1)
    if len(pixel) != len(grid):
        raise ValueError(f"`pixel` must have {len(grid)} indices, one for each axis of {grid}, got {pixel!r}")
    place = 0
    for axis, (index, size) in enumerate(zip(pixel, grid, strict=True)):
        place = place * size + check_count(f"pixel[{axis}]", index, 0, size - 1)
    if (label is None) != (terms.num_labels is None):
        raise ValueError(
            f"`label` must be given exactly if labels have terms of their own, got {label!r} for terms of "
            f"{'all labels together' if terms.num_labels is None else f'{terms.num_labels} labels'}"
        )
    if label is not None and terms.num_labels is not None:
        place += check_count("label", label, 0, terms.num_labels - 1) * terms.num_pixels
    unit = terms.like.new_zeros((terms.batch_size, 1, terms.size))
    unit[item, 0, place] = 1
    column = terms.prepared()(unit)[item, 0]
    return column.reshape(grid if label is None else (terms.num_labels, *grid))


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
    check_finite("embeddings", check_floating("embeddings", embeddings))
    if check_tensor("labels", labels).dtype not in INTEGER_DTYPES:
        raise TypeError(f"`labels` must hold integers, got {labels.dtype}; convert it with .long()")
    check_count("pairs", pairs, 1)
    axes = labels.dim() - 1
    shared = embeddings.dim() == axes + 2
    fits = embeddings.dim() in (axes + 2, axes + 3) and axes > 0
    if not fits or embeddings.shape[0] != labels.shape[0] or embeddings.shape[-axes:] != labels.shape[1:]:
        raise ValueError(
            "`embeddings` must have shape (B, D, L, *S), or (B, D, *S) where labels share them, for `labels` "
            f"(B, *S), got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    known = labels.flatten(1) != ignore_index
    if not shared:
        values = labels.flatten(1)[known]
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < embeddings.shape[2]:
            raise ValueError(
                f"`labels` must be 0 to {embeddings.shape[2] - 1}, or {ignore_index} where unknown, got "
                f"{int(values.min())} to {int(values.max())}"
            )
    rows = known.any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return embeddings.sum() * 0
    weights = known[rows].float()
    first, second = (
        torch.multinomial(weights, pairs, replacement=True, generator=generator) for _ in range(2)
    )
    truth = labels.flatten(1)[rows].long()
    left, right = truth.gather(1, first), truth.gather(1, second)
    if shared:
        e = embeddings.flatten(2)[rows]  # (b, D, P)
        products = (_at(e, first) * _at(e, second)).sum(1)
        return functional.binary_cross_entropy_with_logits(products - threshold, (left == right).to(products))
    e = embeddings.flatten(3)[rows].flatten(1, 2)  # (b, D·L, P)
    count = embeddings.shape[2]
    parts = [_at(e, index).reshape(len(e), -1, count, pairs) for index in (first, second)]  # (b, D, L, pairs)
    costs = torch.einsum("bdlp,bdmp->blmp", *parts)
    return functional.cross_entropy(-costs.flatten(1, 2), left * count + right)


def _at(embeddings: Tensor, index: Tensor) -> Tensor:
    """Return embeddings (b, D, P) at the pixels (b, pairs)."""
    return embeddings.gather(2, index[:, None].expand(-1, embeddings.shape[1], -1))
