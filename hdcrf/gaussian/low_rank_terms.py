"""Pairwise terms between all pixels: inner products of embeddings, a dense matrix of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import (
    NotPositiveDefiniteError,
    Product,
    Solution,
    check_solver_options,
)
from hdcrf.gaussian.pairwise_terms import PairwiseTerms, Solver
from voxel.checks import check_finite, check_floating

__all__ = ["LowRankTerms"]


class LowRankTerms(PairwiseTerms):
    """Terms ⟨e_i, e_j⟩ between all pixels and labels: the matrix A = EᵀE, which is never formed.

    Args:
        embeddings: E. (B, D, L, H, W), an embedding of D dimensions for each label at each pixel; or
            (B, D, H, W), one for each pixel, which all labels share: then E is ψ of a Potts model, in which
            pixels of different labels cost ⟨ψ_p, ψ_q⟩.

    With embeddings for each label A + λI is positive definite for every λ > 0. A Potts model is so only if λ
    exceeds the largest eigenvalue of ψψᵀ; `guarantee` of `solve` adds that.

    Memory: that of E, linear in the pixels. Cost: 2·n·D multiplications a product, for n = L·H·W or H·W; the
    direct solution (Woodbury) n·D² once.

    Reference: Chandra 2018, eqs. 3.1, 3.2 and 3.8.
    """

    def __init__(self, embeddings: Tensor) -> None:
        check_floating("embeddings", embeddings)
        if embeddings.dim() not in (4, 5) or 0 in embeddings.shape:
            raise ValueError(
                "`embeddings` must have shape (B, D, L, H, W), or (B, D, H, W) where labels share them, with "
                f"no size of 0, got {tuple(embeddings.shape)}"
            )
        check_finite("embeddings", embeddings)
        self.like = embeddings
        self.batch_size = embeddings.shape[0]
        self.num_labels = embeddings.shape[2] if embeddings.dim() == 5 else None
        self.grid: tuple[int, ...] = tuple(embeddings.shape[-2:])
        self.num_pixels = self.grid[0] * self.grid[1]
        self.embeddings = embeddings.flatten(2)  # (B, D, n)

    def product(self, vectors: Tensor) -> Tensor:
        """Return Eᵀ(E v) for (B, R, n)."""
        return (vectors @ self.embeddings.mT) @ self.embeddings

    def prepared(self) -> Product:
        """Return the product without gradients."""
        embeddings = self.embeddings.detach().contiguous()
        return lambda vectors: (vectors @ embeddings.mT) @ embeddings

    def diagonal(self) -> Tensor:
        """Return ‖e_i‖², (B, n)."""
        return self.embeddings.square().sum(1)

    def margin(self) -> Tensor:
        """Return zeros (B, 1): EᵀE is positive semidefinite."""
        return self.like.new_zeros((self.batch_size, 1))

    def bound(self) -> Tensor:
        """Return the largest eigenvalue of EᵀE, (B, 1)."""
        eigenvalues: Tensor = torch.linalg.eigvalsh(_gram(self.embeddings))
        return eigenvalues[:, -1:]

    def prefers_direct(self) -> bool:
        """Return whether E has few enough dimensions: n·D² operations at once, not 2·n·D an iteration.

        On two cores and 10 to 20 iterations the two are level at about 500 dimensions, for general
        terms and shared ones alike.
        """
        return min(self.embeddings.shape[1:]) <= 256

    def direct_solvers(self, shift: Tensor, factors: Sequence[float]) -> list[Solver] | None:
        """Return for each factor a solver of (shift + factor · EᵀE) x = b for b (B, R, n).

        x = (b - factor · Eᵀ (shift + factor · EEᵀ)⁻¹ E b) / shift, the formula of Woodbury, a system of D
        unknowns; and once more for what is left of b where that is more than conjugate gradient would leave.
        None if `shift` is not one number an item.
        """
        if shift.shape[1] != 1:
            return None
        gram = _gram(self.embeddings.detach())
        shift = shift.expand(self.batch_size, 1)[..., None]  # (B, 1, 1)
        return [self._direct_solver(gram, shift, factor) for factor in factors]

    def _direct_solver(self, gram: Tensor, shift: Tensor, factor: float) -> Solver:
        e = self.embeddings.detach()
        system = factor * gram + shift * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        root, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):
            raise self._indefinite(gram, shift, factor, int(failed.nonzero()[0]))
        wide = e.shape[1] <= e.shape[2]

        def product(x: Tensor) -> Tensor:
            return shift * x + factor * ((x @ e.mT) @ e)

        def approximate(b: Tensor) -> Tensor:
            if not wide:
                return torch.cholesky_solve(b.mT, root).mT
            inner = torch.cholesky_solve((b @ e.mT).mT, root).mT
            return (b - factor * (inner @ e)) / shift

        def solver(b: Tensor) -> Solution:
            x = approximate(b)
            scale = torch.linalg.vector_norm(b, dim=-1)
            scale = torch.where(scale > 0, scale, 1)
            left = b - product(x)
            residual = torch.linalg.vector_norm(left, dim=-1) / scale
            if bool((residual > check_solver_options(b.dtype)).any()):
                x = x + approximate(left)
                residual = torch.linalg.vector_norm(b - product(x), dim=-1) / scale
            none = torch.zeros(scale.shape, dtype=torch.int64, device=b.device)
            return Solution(x, none, residual, torch.ones_like(none, dtype=torch.bool))

        return solver

    def _indefinite(self, gram: Tensor, shift: Tensor, factor: float, item: int) -> NotPositiveDefiniteError:
        value = (
            f"the system of item {item} is not positive definite: `regularization` is "
            f"{float(shift[item]):.4g}"
        )
        if factor > 0 or not bool(torch.isfinite(gram).all()):
            return NotPositiveDefiniteError(
                f"{value}, too small beside embeddings up to {float(self.embeddings.abs().max()):.4g} for "
                f"{gram.dtype}; increase it, scale the embeddings down, or compute in float64"
            )
        largest = abs(factor) * float(torch.linalg.eigvalsh(gram[item])[-1])
        return NotPositiveDefiniteError(
            f"{value}, and must be above {largest:.4g}, the largest eigenvalue of what labels share; "
            "increase it, scale the embeddings down, or let `guarantee=True` add what is needed"
        )


def _gram(e: Tensor) -> Tensor:
    """Return E Eᵀ (B, D, D), or EᵀE (B, n, n) where that is smaller: the same eigenvalues but zeros."""
    return e @ e.mT if e.shape[1] <= e.shape[2] else e.mT @ e
