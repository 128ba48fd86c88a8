"""The exact Gaussian filter by brute force: the oracle that the fast paths are measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from voxel import FilterOperator
from voxel.precision import full_precision

__all__ = ["ExactGaussian"]


@dataclass(frozen=True)
class _Query:
    features: Tensor
    batch: Tensor | None


class ExactGaussian(FilterOperator):
    """The matrix K_ij = exp(-½‖f_i - f_j‖²), applied in blocks of rows and never held whole.

    Args:
        features: (N, d) float32 or float64, already divided by their standard deviations.
        batch: (N,) integers; points of different batches do not see each other.
        block_elements: How many entries of K to hold at a time.

    Differentiable in features, values and query; the backward pass recomputes each block, so its memory is
    bounded too. Cost: O(N² (d + C)) time.
    """

    def __init__(
        self, features: Tensor, *, batch: Tensor | None = None, block_elements: int = 1 << 24
    ) -> None:
        super().__init__(features, batch)
        self.block_elements = block_elements

    def diagonal(self) -> Tensor:
        """Return the (N,) diagonal of K, which is one."""
        return torch.ones_like(self.features[:, 0])

    def symmetric_product(self, values: Tensor) -> Tensor:
        """Return K v: the matrix is symmetric."""
        return self._apply(values, None)

    def _target(self, query: Tensor, query_batch: Tensor | None) -> _Query:
        return _Query(query, query_batch)

    @full_precision
    def _apply(self, values: Tensor, target: object) -> Tensor:
        rows, row_batch = self.features, self.batch
        if isinstance(target, _Query):
            rows, row_batch = target.features, target.batch
        if rows.shape[0] == 0 or self.num_points == 0:
            return values.new_zeros((rows.shape[0], values.shape[1]))
        recompute = torch.is_grad_enabled() and (
            rows.requires_grad or self.features.requires_grad or values.requires_grad
        )
        step = max(1, self.block_elements // self.num_points)
        blocks = []
        for start in range(0, rows.shape[0], step):
            block = rows[start : start + step]
            other = None if row_batch is None else row_batch[start : start + step]
            if recompute:
                blocks.append(checkpoint(self._block, block, other, values, use_reentrant=False))
            else:
                blocks.append(self._block(block, other, values))
        return torch.cat(blocks)

    def _block(self, rows: Tensor, row_batch: Tensor | None, values: Tensor) -> Tensor:
        # Not by ‖f‖² + ‖g‖² - 2fg, which loses the small distances in float32.
        distance = torch.cdist(rows, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = torch.exp(-0.5 * distance.square())
        if row_batch is not None and self.batch is not None:
            kernel = kernel * (row_batch[:, None] == self.batch[None, :])
        return kernel @ values
