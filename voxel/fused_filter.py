"""The whole filter of a sparse lattice as one operation on the compiled kernels.

It stands for L · c S B_A … B_1 Sᵀ · R, which `SplatBlurSlice` otherwise composes of sparse products, and for
its adjoint, where the axes are blurred in the opposite order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxel.backend import kernels, plain

__all__ = ["filter_into", "fused_filter", "fused_filter_weights_gradient", "splat_blur_slice"]


@torch.library.custom_op("voxel::fused_filter", mutates_args=())
def fused_filter(
    values: Tensor,  # (N, C)
    weights: Tensor,  # (N, P) interpolation weights
    cell: Tensor,  # (N,) int32
    cell_vertices: Tensor,  # (M, P) int32
    links: Tensor,  # (A, V, 2) int32
    left: Tensor | None,  # (N,) the diagonal of L, None for ones; not differentiated
    right: Tensor | None,  # (N,) the diagonal of R
    order: int,
    scale: float,
    adjoint: bool,
) -> Tensor:
    """Return L c S B Sᵀ R v, or L c S Bᵀ Sᵀ R v as the adjoint; differentiable in `values` and `weights`."""
    result = torch.empty_like(values, memory_format=torch.contiguous_format)
    return filter_into(
        result, values, weights, cell, cell_vertices, links, left, right, order, scale, adjoint
    )


def filter_into(
    result: Tensor,
    values: Tensor,
    weights: Tensor,
    cell: Tensor,
    cell_vertices: Tensor,
    links: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    order: int,
    scale: float,
    adjoint: bool,
) -> Tensor:
    """Do what `fused_filter` does, into a contiguous `result` (N, C)."""
    if values.numel():
        kernels().filter(
            plain(values),
            *(None if factor is None else plain(factor) for factor in (left, right)),
            *(plain(part) for part in (cell, cell_vertices, weights, links)),
            order,
            scale,
            adjoint,
            result,
            torch.get_num_threads(),
        )
    return result


@torch.library.custom_op("voxel::fused_filter_weights_gradient", mutates_args=())
def fused_filter_weights_gradient(
    values: Tensor,
    gradient: Tensor,
    weights: Tensor,
    cell: Tensor,
    cell_vertices: Tensor,
    links: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    order: int,
    scale: float,
    adjoint: bool,
) -> Tensor:
    """Return the (N, P) gradient of ⟨gradient, fused_filter(values, weights, …)⟩ in the weights."""
    result = torch.zeros_like(weights, memory_format=torch.contiguous_format)
    if values.numel():
        kernels().filter_weights_gradient(
            *(plain(part) for part in (values, gradient)),
            *(None if factor is None else plain(factor) for factor in (left, right)),
            *(plain(part) for part in (cell, cell_vertices, weights, links)),
            order,
            scale,
            adjoint,
            result,
            torch.get_num_threads(),
        )
    return result


@fused_filter.register_fake
def _(values, weights, cell, cell_vertices, links, left, right, order, scale, adjoint):  # type: ignore[no-untyped-def]
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@fused_filter_weights_gradient.register_fake
def _(  # type: ignore[no-untyped-def]
    values, gradient, weights, cell, cell_vertices, links, left, right, order, scale, adjoint
):
    return torch.empty_like(weights, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.order, ctx.scale, ctx.adjoint = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    values, weights, cell, cell_vertices, links, left, right = ctx.saved_tensors
    settings = (ctx.order, ctx.scale)
    grad_values = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_values = fused_filter(
            gradient, weights, cell, cell_vertices, links, right, left, *settings, not ctx.adjoint
        )
    if ctx.needs_input_grad[1]:
        grad_weights = fused_filter_weights_gradient(
            values, gradient, weights, cell, cell_vertices, links, left, right, *settings, ctx.adjoint
        )
    return grad_values, grad_weights, None, None, None, None, None, None, None, None


fused_filter.register_autograd(_backward, setup_context=_setup_context)


def splat_blur_slice(
    values: Tensor,
    weights: Tensor,
    cell: Tensor,
    cell_vertices: Tensor,
    links: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
    *,
    order: int,
    scale: float,
) -> Tensor:
    """Apply `fused_filter`, without the cost of dispatching where nothing is differentiated."""
    arguments = (values, weights, cell, cell_vertices, links, left, right, order, scale, False)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        result: Tensor = fused_filter(*arguments)
        return result
    return filter_into(torch.empty_like(values, memory_format=torch.contiguous_format), *arguments)
