"""The pairwise terms of one pixel with all others: what a network has learned, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hdcrf.gaussian.pairwise_terms import PairwiseTerms
from voxel.checks import check_count

__all__ = ["affinity"]


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
        TypeError: If an argument has the wrong type.
        ValueError: If `pixel` or `label` lies outside, or a label is given for shared terms or lacks for
            others.

    Reference: Chandra 2018, Figs. 3.3 to 3.6 and 4.3, which show such maps.
    """
    grid = terms.grid if isinstance(terms, PairwiseTerms) else None
    if grid is None:
        raise TypeError(f"`terms` must be pairwise terms over one grid, got {type(terms).__name__}")
    check_count("item", item, 0, terms.batch_size - 1)
    if not isinstance(pixel, Sequence):
        raise TypeError(f"`pixel` must be a sequence of indices, got {type(pixel).__name__}")
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
    return column.reshape(grid if label is None else (-1, *grid))
