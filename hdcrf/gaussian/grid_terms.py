"""Pairwise terms between neighbouring pixels of a grid: a sparse matrix."""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import Product
from hdcrf.gaussian.pairwise_terms import PairwiseTerms
from voxel.backend import kernels, plain, uses_native
from voxel.checks import check_count, check_finite, check_floating

__all__ = ["OFFSETS", "GridTerms"]

Region = tuple[EllipsisType, slice, slice]  # of (..., H, W)

OFFSETS = {
    4: ((0, 1), (1, 0)),
    8: ((0, 1), (1, 0), (1, 1), (1, -1)),
    12: ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0)),
}
"""For each connectivity the offsets (dy, dx) of one half of the neighbours; the others are opposite."""


class GridTerms(PairwiseTerms):
    """Terms between each pixel of a grid and its 4, 8 or 12 nearest neighbours.

    A(p, m; p + o_e, n) = A(p + o_e, n; p, m) = weights[e, m, n] at the pixel p, for the offsets o_e in
    `OFFSETS`: one half of the neighbours, since A is symmetric. Where p + o_e lies outside the grid the entry
    is ignored.

    Args:
        weights: (B, E, L, L, H, W), terms for each pair of labels; or (B, E, H, W), Ψ of a Potts model, which
            all pairs of different labels share. E is half the connectivity.
        connectivity: 4 (beside, below), 8 (diagonal too) or 12 (two pixels beside and below too).

    The diagonal of A is 0, so that A + λI is positive definite only for λ large enough: give such a λ, or let
    `guarantee=True` of `solve` add Σ_j |A_ij| to the diagonal, by which the matrix is strictly diagonally
    dominant and so positive definite by construction.

    Memory: that of the weights. Cost: 2·E·L²·H·W multiplications a product, or 2·E·H·W where labels share.

    Reference: Chandra 2018, sections 2.3 and 2.3.5, and the connectivities of section 2.4.1.
    """

    def __init__(self, weights: Tensor, *, connectivity: int = 4) -> None:
        check_floating("weights", weights)
        if check_count("connectivity", connectivity, 4) not in OFFSETS:
            raise ValueError(f"`connectivity` must be 4, 8 or 12, got {connectivity}")
        self.offsets = OFFSETS[connectivity]
        count = len(self.offsets)
        fits = weights.dim() in (4, 6) and weights.shape[1] == count and 0 not in weights.shape
        if not fits or (weights.dim() == 6 and weights.shape[2] != weights.shape[3]):
            raise ValueError(
                f"`weights` must have shape (B, {count}, L, L, H, W), or (B, {count}, H, W) where labels "
                f"share them, with no size of 0, for a connectivity of {connectivity}, "
                f"got {tuple(weights.shape)}"
            )
        check_finite("weights", weights)
        self.like = weights
        self.batch_size = weights.shape[0]
        self.num_labels = weights.shape[2] if weights.dim() == 6 else None
        self.grid: tuple[int, int] = (weights.shape[-2], weights.shape[-1])
        self.num_pixels = self.grid[0] * self.grid[1]
        self.weights = weights if weights.dim() == 6 else weights[:, :, None, None]

    def product(self, vectors: Tensor) -> Tensor:
        """Return A v for (B, R, n)."""
        needs_gradient = self.weights.requires_grad or vectors.requires_grad
        return (self._product if torch.is_grad_enabled() and needs_gradient else self.prepared())(vectors)

    def _product(self, vectors: Tensor) -> Tensor:
        v = vectors.reshape(self.batch_size, -1, self.weights.shape[2], *self.grid)
        result = torch.zeros_like(v)
        for e, offset in enumerate(self.offsets):
            here, there = self._pairs(offset)
            block = self.weights[:, None, e][here]  # (B, 1, L, L, h, w)
            result[here] += (block * v[there][:, :, None]).sum(3)
            result[there] += (block * v[here][:, :, :, None]).sum(2)
        return result.reshape(vectors.shape)

    def prepared(self) -> Product:
        """Return the product without gradients, on the compiled kernel where there is one."""
        if not uses_native("auto", self.like):
            return self._product
        # The kernel reads an entry once for both of its pixels. Milliseconds on one thread for 21 labels and
        # 4 neighbours in float32, on 41x41 and 109x85 pixels: 0.3 and 2.3; `_product` 0.9 and 13. The matrix
        # by rows, which would have to be assembled first: in torch.sparse 1.6 and 9.3, in voxel.SparseMatrix
        # 2.4 and 18, in SciPy 1.7 and 11. torch.bmm of the blocks: 13 and 75.
        weights = plain(self.weights)
        offsets = torch.tensor(self.offsets)
        labels = weights.shape[2]

        def product(vectors: Tensor) -> Tensor:
            v = plain(vectors).view(self.batch_size, -1, labels, *self.grid)
            result = torch.empty_like(v)
            kernels().grid_product(weights, offsets, v, result, torch.get_num_threads())
            return result.view(vectors.shape)

        return product

    def diagonal(self) -> Tensor:
        """Return zeros (B, n)."""
        return self.like.new_zeros((self.batch_size, self.size))

    def margin(self) -> Tensor:
        """Return Σ_j |A_ij|, (B, n): by Gershgorin no eigenvalue of A is larger in magnitude."""
        result = self.like.new_zeros((self.batch_size, self.weights.shape[2], *self.grid))
        for e, offset in enumerate(self.offsets):
            here, there = self._pairs(offset)
            sizes = self.weights[:, e][here].abs()  # (B, L, L, h, w)
            result[here] += sizes.sum(2)
            result[there] += sizes.sum(1)
        return result.flatten(1)

    def bound(self) -> Tensor:
        """Return Σ_j |A_ij|, (B, n), as `margin`."""
        return self.margin()

    def _pairs(self, offset: tuple[int, int]) -> tuple[Region, Region]:
        """Return where the pixels lie that have a neighbour at an offset, and where these neighbours."""
        (dy, dx), (height, width) = offset, self.grid
        rows, columns = max(height - dy, 0), max(width - abs(dx), 0)
        left, right = max(-dx, 0), max(dx, 0)
        return (
            (..., slice(0, rows), slice(left, left + columns)),
            (..., slice(dy, dy + rows), slice(right, right + columns)),
        )
