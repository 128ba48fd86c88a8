"""Projection onto the probability simplex, with a leak: the last part of a step of CRF-Grad.

The point of the simplex nearest to x subtracts the same number from each entry and cuts off what is negative:

    max(x_λ - t, 0)    with t such that    Σ_λ max(x_λ - t, 0) = 1.

In training what is cut off leaks (eq. 12), since where nothing passes no gradient does either:

    f_λ = x_λ - t           where x_λ - t ≥ 0,
    f_λ = leak · (x_λ - t)  elsewhere.

With k the number of active entries, those above t, the derivative is (eq. 13)

    ∂f_λ/∂x_μ = s_λ (δ_λμ - ∂t/∂x_μ),    ∂t/∂x_μ = 1/k for active μ, else 0,

where the slope s_λ is 1 for active λ, else the leak. As printed, eq. 13 takes the slope from the side of t on
which x_μ lies; by eq. 12 it must be that of x_λ, and here it is. At x_λ = t, where f_λ has a kink, the slope
is the leak.

Reference: Larsson, Arnab, Kahl, Zheng and Torr, Learning Arbitrary Pairwise Potentials in CRFs for Semantic
Segmentation, 2017, supplement, "Simplex Projection" (algorithm 2, eqs. 12 and 13); after Chen and Ye,
Projection onto a simplex, arXiv:1101.6081, 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from voxel.backend import kernels, plain, uses_native
from voxel.checks import check_count, check_finite, check_floating, check_number
from voxel.memory import new_large
from voxel.precision import full_precision

__all__ = ["check_leak", "project_simplex", "projected"]


@full_precision
def project_simplex(x: Tensor, dim: int = -1, leak: float = 0.0, *, backend: str = "auto") -> Tensor:
    """Project onto the probability simplex along a dimension, exactly or with a leak.

    The result is x - t where that is positive, and leak · (x - t) elsewhere, with t such that the positive
    part sums to 1. Without a leak that is the nearest distribution to x.

    Args:
        x: Finite, float32 or float64, of any shape with one dimension or more.
        dim: The dimension along which the result sums to 1; negative counts from the end.
        leak: The slope of what lies outside the simplex, from 0 to 1. With more than 0 results have negative
            entries; that lets gradients through in training.
        backend: "auto" for compiled kernels where they can run, "reference" for PyTorch, "native" for the
            kernels.

    Returns:
        A tensor of the shape of `x`.

    Raises:
        TypeError: If `x` is not a floating tensor, or `dim` or `leak` is of the wrong type.
        ValueError: If `x` is not finite, if `dim` is not one of its dimensions or is empty, if the leak is
            not in [0, 1], or if the backend is unknown or cannot run.

    Differentiable in `x`, also twice; the second derivative is zero. Deterministic.

    Cost: a row is sorted, or by the kernel gone through some times, most often four to six.
    """
    dim, leak = _check(x, dim, leak)
    native = uses_native(backend, x)
    rows = x.movedim(dim, -1)
    result = projected(rows.reshape(-1, x.shape[dim]).contiguous(), leak, native)
    return result.view(rows.shape).movedim(-1, dim)


def _check(x: Tensor, dim: int, leak: float) -> tuple[int, float]:
    check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("`x` must have a dimension to project along, got a scalar; give it a shape")
    dim = check_count("dim", dim, -x.dim(), x.dim() - 1) % x.dim()
    if x.shape[dim] == 0:
        raise ValueError(
            f"`x` must have an entry or more along dimension {dim}, got shape {tuple(x.shape)}; give it one"
        )
    slope = check_leak(leak)
    if not torch.compiler.is_compiling():
        check_finite("x", x)
    return dim, slope


def check_leak(leak: object) -> float:
    """Return `leak` if it is a number from 0 to 1, else raise."""
    number = check_number("leak", leak)
    if not 0 <= number <= 1:
        raise ValueError(f"`leak` must be from 0 to 1, got {leak}; take 0 for the exact projection")
    return number


def projected(
    x: Tensor,  # (P, K) contiguous, finite, K of 1 or more
    leak: float,
    native: bool,
) -> Tensor:  # (P, K)
    """Do what `project_simplex` does to each row, without looking at what it is given."""
    if native:
        result: Tensor = _projected(x, leak)
        return result
    # The projection does not change if a number is added to a row: with its largest entry at 0, t lies in
    # [-1, 0), and numbers of any size leave its digits alone.
    x = x - x.detach().amax(1, keepdim=True)
    x = x - _threshold(x.detach())
    active = x > 0
    # What t leaves of the sum is smaller than t can show. Through it t is differentiated.
    x = x - (torch.where(active, x, 0).sum(1, keepdim=True) - 1) / active.sum(1, keepdim=True)
    # leaky_relu without a leak would make NaN of what is infinitely far below, and -0 of the rest.
    return functional.leaky_relu(x, leak) if leak else functional.relu(x)


def _threshold(x: Tensor) -> Tensor:
    """Return t (P, 1) of rows (P, K) whose largest entry is 0."""
    ordered = x.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1  # k t, if the k largest were active
    number = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    active = (ordered * number > excess).sum(1, keepdim=True).clamp_min(1)  # none in a row with NaN
    return excess.gather(1, active - 1) / active


@torch.library.custom_op("hdcrf::project_simplex", mutates_args=())
def _projected(x: Tensor, leak: float) -> Tensor:
    """Do what `projected` does, by the kernel."""
    result = new_large(x, x.shape)
    if x.numel():
        kernels().project_simplex(plain(x), leak, result, torch.get_num_threads())
    return result


@torch.library.custom_op("hdcrf::project_simplex_backward", mutates_args=())
def _gradient(gradient: Tensor, projected: Tensor, leak: float) -> Tensor:
    """Return Jᵀ times the gradient, where J is the derivative at what was projected to `projected`."""
    result = new_large(gradient, gradient.shape)
    if gradient.numel():
        threads = torch.get_num_threads()
        kernels().project_simplex_adjoint(plain(gradient), plain(projected), leak, result, threads)
    return result


@_projected.register_fake
def _(x, leak):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gradient.register_fake
def _(gradient, projected, leak):  # type: ignore[no-untyped-def]
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.leak = inputs[-1]
    ctx.save_for_backward(output)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    return _gradient(gradient, *ctx.saved_tensors, ctx.leak), None


def _setup_second_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _gradient, projected, ctx.leak = inputs
    ctx.save_for_backward(projected)


def _second_backward(ctx, direction):  # type: ignore[no-untyped-def]
    # J times the direction: the adjoint is linear in the gradient, and constant in the result but at kinks.
    active = ctx.saved_tensors[0] > 0
    mean = torch.where(active, direction, 0).sum(1, keepdim=True) / active.sum(1, keepdim=True)
    along = direction - mean
    return torch.where(active, along, ctx.leak * along), None, None


_projected.register_autograd(_backward, setup_context=_setup_context)
_gradient.register_autograd(_second_backward, setup_context=_setup_second_context)
