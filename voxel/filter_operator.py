"""What every Gaussian filter of this project offers: four normalisations of one linear operator."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from voxel.checks import (
    check_batch_index,
    check_choice,
    check_finite,
    check_matrix,
    check_same_kind,
)

__all__ = ["NORMALIZATIONS", "FilterOperator", "check_features", "reciprocal_or_zero"]

NORMALIZATIONS = ("none", "before", "after", "symmetric")


def check_features(features: object) -> Tensor:
    """Return `features` if they are a floating matrix with a column at least, else raise."""
    matrix = check_matrix("features", features, "(N, d)")
    if matrix.shape[1] == 0:
        raise ValueError("`features` must have shape (N, d) with d of at least 1, got d = 0")
    return matrix


class FilterOperator(ABC):
    """A linear operator K ≈ exp(-½‖f_i - f_j‖²) over the points that it was built from.

    Attributes:
        features: (N, d) the points' features, in units of one standard deviation.
        batch: (N,) batch index of each point, or None; points of different batches do not interact.
    """

    def __init__(self, features: Tensor, batch: Tensor | None) -> None:
        self.features = check_features(features)
        check_finite("features", features)
        if batch is not None:
            check_batch_index("batch", batch, features.shape[0], features)
        self.batch = batch

    @property
    def dimension(self) -> int:
        """d, the dimension of the feature space."""
        return self.features.shape[1]

    @property
    def num_points(self) -> int:
        """N, the number of points."""
        return self.features.shape[0]

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the (N,) diagonal of K: how much of its own value each point gets back."""

    @abstractmethod
    def _apply(self, values: Tensor, target: object) -> Tensor:
        """Return K v, or K's rows at the `target` that `_target` made."""

    @abstractmethod
    def _target(self, query: Tensor, query_batch: Tensor | None) -> object:
        """Prepare the rows of K at other points."""

    @abstractmethod
    def symmetric_product(self, values: Tensor) -> Tensor:
        """Return W v for the symmetric part W = ½ (K + Kᵀ), (N, C), without the checks of `filter`.

        K of a lattice is not symmetric where vertices are missing: blurs along different axes then do not
        commute. The diagonal of W is that of K. Differentiable in `values` and the features.
        """

    def degree(self) -> Tensor:
        """Return the (N,) row sums D = K 1, the approximate number of points within reach of each."""
        return self._apply(self.features.new_ones((self.num_points, 1)), None)[:, 0]

    def filter(
        self,
        values: Tensor,
        *,
        normalization: str = "none",
        query: Tensor | None = None,
        query_batch: Tensor | None = None,
    ) -> Tensor:
        """Filter `values` with the Gaussian.

        With D = diag(K 1), the operator applied is K ("none"), K D⁻¹ ("before"), D⁻¹ K ("after"), or
        D⁻½ K D⁻½ ("symmetric").

        Args:
            values: (N, C), of the features' dtype and device.
            normalization: "none", "before", "after" or "symmetric".
            query: (M, d) features at which to read the result; None reads it at the N points. On the left
                of K, D is then that of the query, K_query 1.
            query_batch: (M,) batch index of each query; needed exactly if the points have one.

        Returns:
            (N, C), or (M, C) with a query. A query that no point reaches gets 0 under every normalisation.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If an argument has the wrong shape, device or content.

        Differentiable in `values` (by the transposed product), in the features that K was built from,
        and in `query`.
        """
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_matrix("values", values, "(N, C)", rows=self.num_points)
        check_same_kind("values", values, "features", self.features)
        check_finite("values", values)
        target = None if query is None else self._checked_target(query, query_batch)
        if query is None:
            self._refuse_batch_alone(query_batch)

        right = left = None
        if normalization in ("before", "symmetric"):
            right = reciprocal_or_zero(self.degree())
        if normalization in ("after", "symmetric"):
            if query is None:
                left = right if right is not None else reciprocal_or_zero(self.degree())
            else:
                left = reciprocal_or_zero(self._apply(values.new_ones((self.num_points, 1)), target)[:, 0])
        if normalization == "symmetric":
            right = None if right is None else right.sqrt()
            left = None if left is None else _root(left)
        scaled = values if right is None else values * right[:, None]
        result = self._apply(scaled, target)
        if left is not None:
            result = result * left[:, None]
        if not bool(torch.isfinite(result.detach().sum())) and not bool(
            torch.isfinite(result.detach()).all()
        ):
            raise ValueError(
                f"`values` up to {float(values.detach().abs().max()):.3g} have sums beyond the range of "
                f"{values.dtype}; scale them down"
            )
        return result

    @staticmethod
    def _refuse_batch_alone(query_batch: Tensor | None) -> None:
        if query_batch is not None:
            raise ValueError("`query_batch` was given without `query`; pass both or neither")

    def _checked_target(self, query: Tensor, query_batch: Tensor | None) -> object:
        check_matrix("query", query, f"(M, {self.dimension})")
        if query.shape[1] != self.dimension:
            raise ValueError(
                f"`query` must have shape (M, d) with d = {self.dimension}, got {tuple(query.shape)}"
            )
        check_same_kind("query", query, "features", self.features)
        check_finite("query", query)
        if (query_batch is None) != (self.batch is None):
            raise ValueError(
                "`query_batch` must be given exactly if the filter was built with `batch`: "
                f"batch {'absent' if self.batch is None else 'present'}, "
                f"query_batch {'absent' if query_batch is None else 'present'}"
            )
        if query_batch is not None:
            check_batch_index("query_batch", query_batch, query.shape[0], query)
        return self._target(query, query_batch)


def reciprocal_or_zero(degree: Tensor) -> Tensor:
    """Return 1 / degree, and 0 where nothing is within reach."""
    reached = degree > 0
    return torch.where(reached, 1 / torch.where(reached, degree, 1), 0)


def _root(reciprocal: Tensor) -> Tensor:
    """Return the square root, with the gradient 0 at 0."""
    reached = reciprocal > 0
    return torch.where(reached, torch.where(reached, reciprocal, 1).sqrt(), 0)
