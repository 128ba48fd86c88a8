"""Symmetric matrices known by their products, and solutions whose gradients are in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import Product, Solution
from voxel.precision import full_precision

__all__ = ["SymmetricMatrix", "implicit_solution"]


class SymmetricMatrix(ABC):
    """A symmetric matrix M for each item of a batch, known by its products.

    Attributes:
        batch_size: B.
        size: n, the length of the vectors it multiplies.
        like: A tensor of the matrix's dtype and device.
    """

    batch_size: int
    size: int
    like: Tensor

    @abstractmethod
    def product(self, vectors: Tensor) -> Tensor:
        """Return M v for (B, R, n) vectors, R to each item; differentiable in v and in what M is made of."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the (B, n) diagonal of M."""

    @abstractmethod
    def margin(self) -> Tensor:
        """Return a diagonal Δ ≥ 0, (B, n) or (B, 1), such that Δ + M is positive semidefinite."""

    @abstractmethod
    def bound(self) -> Tensor:
        """Return a diagonal Δ ≥ 0, (B, n) or (B, 1), such that Δ + M and Δ - M are positive semidefinite."""

    def prepared(self) -> Product:
        """Return the product without gradients, made ready to be computed many times."""
        return self.product

    def dense(self) -> Tensor:
        """Return M itself, (B, n, n): for small problems, and to check products by."""
        identity = torch.eye(self.size, dtype=self.like.dtype, device=self.like.device)
        return self.product(identity.expand(self.batch_size, -1, -1))


class _InverseProduct(torch.autograd.Function):
    """r ↦ A⁻¹ r at r = 0, where its value is known; the backward pass solves the system once."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solver: Callable[[Tensor], Solution]) -> Tensor:
        ctx.solver = solver
        ctx.save_for_backward(residual)
        return torch.zeros_like(residual)

    @staticmethod
    @full_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.no_grad():
            # A gradient that overflowed must come out as one, for a scaler of gradients to see.
            finite = torch.isfinite(gradient).all(-1, keepdim=True)
            solved = ctx.solver(torch.where(finite, gradient, 0).contiguous()).x
            solved = torch.where(finite, solved, torch.nan)
        if torch.is_grad_enabled():
            (residual,) = ctx.saved_tensors
            solved = _OnceDifferentiable.apply(solved, residual)  # type: ignore[no-untyped-call]
        return solved, None


class _OnceDifferentiable(torch.autograd.Function):
    """A gradient as it is, tied to what it depends on, so that a second derivative is refused, not wrong."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, residual: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError(
            "solutions of a Gaussian CRF are differentiable once: their gradients come from another solve, "
            "which is not differentiated"
        )


def implicit_solution(
    residual: Callable[[Tensor], Tensor], solution: Solution, solver: Callable[[Tensor], Solution]
) -> Tensor:
    """Return the solution x of an equation b(θ) - A(θ) x = 0, with its gradients in closed form.

    With g from A g = ∂L/∂x, which is one more solve, ∂L/∂b = g and ∂L/∂A = -g ⊗ x: for the entries that A
    has, and on through whatever A and b were computed from. Nothing is unrolled: x is written as
    x* + A⁻¹ (b - A x*) with x* a constant. The last term is zero, and autograd differentiates its residual,
    one product with A.

    Args:
        residual: x ↦ b - A x, differentiable in what A and b were computed from.
        solution: x*, as a solver found it.
        solver: r ↦ A⁻¹ r, without gradients, for the symmetric A.

    Returns:
        x, differentiable once.

    Reference: Chandra 2018, eqs. 2.7 and 2.14.
    """
    if not torch.is_grad_enabled():
        return solution.x
    left = residual(solution.x.detach())
    if not left.requires_grad:
        return solution.x
    correction: Tensor = _InverseProduct.apply(left, solver)  # type: ignore[no-untyped-call]
    return solution.x.detach() + correction
