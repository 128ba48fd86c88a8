"""The whole filter of a sparse lattice as one operation on the compiled kernels.

It stands for L · c S B_A … B_1 Sᵀ · R, which `SplatBlurSlice` otherwise composes of sparse products, and for
its adjoint, where the axes are blurred in the opposite order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxel.backend import kernels, plain
from voxel.memory import new_large

__all__ = ["filter_into", "fused_filter", "fused_filter_weights_gradient"]


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
    result = new_large(values, values.shape)
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
        arrays = _plain_lattice(left, right, cell, cell_vertices, weights, links)
        threads = torch.get_num_threads()
        kernels().filter(plain(values), *arrays, order, scale, adjoint, result, threads)
    return result


def _plain_lattice(*parts: Tensor | None) -> list[Tensor | None]:
    return [None if part is None else plain(part) for part in parts]


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
        arrays = _plain_lattice(left, right, cell, cell_vertices, weights, links)
        threads = torch.get_num_threads()
        kernels().filter_weights_gradient(
            plain(values), plain(gradient), *arrays, order, scale, adjoint, result, threads
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
