"""The bistochastised kernel of a Gaussian filter, and its Laplacian."""

from __future__ import annotations

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import ConvergenceError, conjugate_gradient
from hdcrf.gaussian.linear_system import implicit_solution
from voxel import FilterOperator

__all__ = ["Bistochastic"]

_MOST_ITERATIONS = 200
_FIRST_POWER, _POWER = 1 / 2, 2 / 3


class Bistochastic:
    """The kernel Ŵ = diag(n) W diag(n), whose rows and columns sum to one, and its Laplacian D̂ - Ŵ.

    W = ½ (K + Kᵀ) is the symmetric part of a Gaussian filter K, and n > 0 the scale for which n ∘ (W n) = 1,
    by the iteration n ← n ∘ (n ∘ (W n))^-p. D̂ = n ∘ (W n) are the row sums as they are, so that the
    Laplacian of a constant is zero up to rounding, however close to one they came.

    Args:
        operator: K, over N points.
        tolerance: The row sums are within this of one; None takes 1e-5 in float32 and 1e-10 in float64.

    Attributes:
        scale: n, (N,). Differentiable in the features that K was built from: as the solution of
            1/n - W n = 0, by one system with the matrix W + diag(1/n²) in the backward pass.
        row_sums: D̂, (N,), without gradient.

    Raises:
        ConvergenceError: If 200 iterations did not suffice.

    Cost: one filter both ways an iteration, each of which divides the distance by three: 11 or 12 in float32,
    23 in float64, for the features of photos.

    Reference: Barron and Poole, ECCV 2016, section 2 and algorithm 1. They bistochastise the blur of their
    grid; we, what the filter does to the points, whatever its lattice. Their p is ½, which is ours in the
    first step alone, where it brings the sums to about one. Near the solution a step multiplies the error of
    log n by 1 - p (1 + μ), for the eigenvalues μ of Ŵ: nearly all from 0 to 1, so that p = ⅔ leaves at most a
    third of it, and p = ½ a half. Any p up to 1 converges, as log W n changes by no more than log n does.
    """

    def __init__(self, operator: FilterOperator, *, tolerance: float | None = None) -> None:
        self.operator = operator
        if tolerance is None:
            tolerance = 1e-5 if operator.features.dtype == torch.float32 else 1e-10
        with torch.no_grad():
            scale, self.row_sums = self._iterate(tolerance)
        self._found = scale
        self.scale = implicit_solution(lambda n: n.reciprocal() - self._reach(n), scale, self._solved)

    def _reach(self, values: Tensor) -> Tensor:
        """Return W v for one vector (N,)."""
        return self.operator.symmetric_product(values[:, None])[:, 0]

    def _iterate(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Return n and n ∘ (W n)."""
        scale = self.operator.features.new_ones(self.operator.num_points)
        for iteration in range(_MOST_ITERATIONS):
            reach = self._reach(scale)
            row_sums = scale * reach
            error = float((row_sums - 1).abs().max())
            if error <= tolerance:
                return scale, row_sums
            scale = scale * row_sums.pow(-_POWER if iteration else -_FIRST_POWER)
        raise ConvergenceError(
            f"the kernel's rows sum to one within {error:.2g} after {_MOST_ITERATIONS} iterations of "
            f"bistochastisation, where {tolerance:.2g} was asked for; compute in float64"
        )

    def _solved(self, b: Tensor) -> Tensor:
        """Solve (W + diag(1/n²)) x = b, whose matrix has eigenvalues from about 1 to 2 when scaled by n."""
        inverse_square = self._found.square().reciprocal()
        return conjugate_gradient(lambda x: self._reach(x) + inverse_square * x, b, diagonal=inverse_square).x

    def laplacian(self, values: Tensor) -> Tensor:
        """Return (D̂ - Ŵ) v, (N, C); differentiable in `values` and the features."""
        scale = self.scale[:, None]
        reach = self.operator.symmetric_product(torch.cat([scale, scale * values], 1))
        return scale * (values * reach[:, :1] - reach[:, 1:])

    def laplacian_diagonal(self) -> Tensor:
        """Return the (N,) diagonal of D̂ - Ŵ, without gradient."""
        with torch.no_grad():
            return self.row_sums - self._found.square() * self.operator.diagonal()
