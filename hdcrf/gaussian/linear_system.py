"""The solution of a linear system with its gradients in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import Product
from voxel.precision import full_precision

__all__ = ["implicit_solution"]


class _InverseProduct(torch.autograd.Function):
    """r ↦ A⁻¹ r at r = 0, where its value is known; the backward pass solves the system once."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solver: Product) -> Tensor:
        ctx.solver = solver
        ctx.save_for_backward(residual)
        return torch.zeros_like(residual)

    @staticmethod
    @full_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.no_grad():
            # A gradient that overflowed must come out as one, for a scaler of gradients to see.
            finite = torch.isfinite(gradient).all(-1, keepdim=True)
            solved = ctx.solver(torch.where(finite, gradient, 0).contiguous())
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


def implicit_solution(residual: Product, solution: Tensor, solver: Product) -> Tensor:
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
        return solution
    left = residual(solution.detach())
    if not left.requires_grad:
        return solution
    correction: Tensor = _InverseProduct.apply(left, solver)  # type: ignore[no-untyped-call]
    return solution.detach() + correction
