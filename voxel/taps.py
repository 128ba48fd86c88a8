"""The sum over the taps of a sparse convolution, y[t] = Σ_o W_oᵀ x[s] over the pairs (s, t) of each tap o.

One tap follows another: the gathered rows of a single tap stay in the cache, those of all taps would not.
The sum and its two gradients are closed among themselves,

    ∂/∂x: Σ_o W_o g[t] at s, the same sum with its pairs and its weights turned round;
    ∂/∂W_o: x[s]ᵀ g[t], whose own gradients are sums over taps again,

so that they can be differentiated any number of times, and autograd keeps what came in and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxel.precision import full_precision

__all__ = ["sum_over_taps"]


def sum_over_taps(
    features: Tensor, weight: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], rows: int, groups: int = 1
) -> Tensor:
    """Return y[t] = Σ_o W_oᵀ x[s] over the pairs (s, t) of each tap o; rows that no pair reaches are zero.

    Args:
        features: x, (V, C_in).
        weight: (O, C_in / groups, C_out), in the dtype of the features.
        pairs: O pairs of equally long int64 vectors (s, t); no vector holds a row twice.
        rows: The number of rows of y.
        groups: How many groups the channels are cut into, as in `torch.nn.Conv2d`: the output channels of a
            group see the input channels of that group alone. Divides C_in and C_out.

    Returns:
        (rows, C_out). Under `torch.autocast` too it computes in the dtype of the features, and returns it.

    Differentiable any number of times in `features` and `weight`. Deterministic.
    Cost: O(pairs · C_in · C_out / groups); autograd keeps the arguments alone.
    """
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    result: Tensor = tap_sum(features, weight, sources, targets, rows, groups)
    return result


@torch.library.custom_op("voxel::tap_sum", mutates_args=())
def tap_sum(
    features: Tensor,  # (V, C_in)
    weight: Tensor,  # (O, C_in / groups, C_out)
    sources: Sequence[Tensor],  # O vectors of rows of `features`
    targets: Sequence[Tensor],  # O vectors of rows of the result
    rows: int,
    groups: int,
) -> Tensor:
    """Do what `sum_over_taps` does."""
    return _tap_sum(features, weight, sources, targets, rows, groups)


# The kernels of an operation run with autocast as it stands outside: they must switch it off themselves.


@full_precision
def _tap_sum(
    features: Tensor,
    weight: Tensor,
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    rows: int,
    groups: int,
) -> Tensor:
    output = features.new_zeros((rows, weight.shape[2]))
    for matrix, source, target in zip(weight, sources, targets, strict=True):
        if len(source):
            output.index_add_(0, target, _product(features.index_select(0, source), matrix, groups))
    return output


@torch.library.custom_op("voxel::tap_products", mutates_args=())
def tap_products(
    left: Tensor,  # (V, C_in)
    right: Tensor,  # (rows, C_out)
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    groups: int,
) -> Tensor:
    """Return left[s]ᵀ right[t] over the pairs of each tap, within each group: (O, C_in / groups, C_out)."""
    return _tap_products(left, right, sources, targets, groups)


@full_precision
def _tap_products(
    left: Tensor, right: Tensor, sources: Sequence[Tensor], targets: Sequence[Tensor], groups: int
) -> Tensor:
    output = left.new_zeros((len(sources), left.shape[1] // groups, right.shape[1]))
    for matrix, source, target in zip(output, sources, targets, strict=True):
        if len(source):
            matrix.copy_(_inner(left.index_select(0, source), right.index_select(0, target), groups))
    return output


def _product(rows: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """Return each group of the (P, C_in) rows times that group of the (C_in / groups, C_out) matrix."""
    if matrix.shape[0] == 1 and matrix.shape[1] == groups:
        return rows * matrix
    if groups == 1:
        return rows @ matrix
    return (_grouped(rows, groups) @ _grouped(matrix, groups)).transpose(0, 1).flatten(1)


def _inner(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """Return leftᵀ right, (C_in / groups, C_out), for (P, C_in) and (P, C_out), group by group."""
    if left.shape[1] == right.shape[1] == groups:
        return (left * right).sum(0, keepdim=True)
    if groups == 1:
        return left.T @ right
    blocks = _grouped(left, groups).transpose(1, 2) @ _grouped(right, groups)
    return blocks.transpose(0, 1).flatten(1)


def _grouped(matrix: Tensor, groups: int) -> Tensor:
    """Cut the columns of (R, C) into groups: (groups, R, C / groups)."""
    return matrix.reshape(matrix.shape[0], groups, matrix.shape[1] // groups).transpose(0, 1)


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """Return (O, C_out / groups, C_in): the matrix of each tap and group transposed."""
    if groups == 1:
        return weight.transpose(1, 2)
    taps, inputs, outputs = weight.shape
    return weight.reshape(taps, inputs, groups, outputs // groups).transpose(1, 3).flatten(2)


@tap_sum.register_fake
def _(features, weight, sources, targets, rows, groups):  # type: ignore[no-untyped-def]
    return features.new_empty((rows, weight.shape[2]))


@tap_products.register_fake
def _(left, right, sources, targets, groups):  # type: ignore[no-untyped-def]
    return left.new_empty((len(sources), left.shape[1] // groups, right.shape[1]))


def _save_sum(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features, weight, sources, targets, _rows, ctx.groups = inputs
    ctx.save_for_backward(features, weight, *sources, *targets)


def _sum_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    features, weight, *ends = ctx.saved_tensors
    taps, groups = len(ends) // 2, ctx.groups
    sources, targets = ends[:taps], ends[taps:]
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        turned = _transposed(weight, groups)
        grad_features = tap_sum(gradient, turned, targets, sources, features.shape[0], groups)
    if ctx.needs_input_grad[1]:
        grad_weight = tap_products(features, gradient, sources, targets, groups)
    return grad_features, grad_weight, [None] * taps, [None] * taps, None, None


def _save_products(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    left, right, sources, targets, ctx.groups = inputs
    ctx.save_for_backward(left, right, *sources, *targets)


def _products_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    left, right, *ends = ctx.saved_tensors
    taps, groups = len(ends) // 2, ctx.groups
    sources, targets = ends[:taps], ends[taps:]
    grad_left = grad_right = None
    if ctx.needs_input_grad[0]:
        turned = _transposed(gradient, groups)
        grad_left = tap_sum(right, turned, targets, sources, left.shape[0], groups)
    if ctx.needs_input_grad[1]:
        grad_right = tap_sum(left, gradient, sources, targets, right.shape[0], groups)
    return grad_left, grad_right, [None] * taps, [None] * taps, None


tap_sum.register_autograd(_sum_backward, setup_context=_save_sum)
tap_products.register_autograd(_products_backward, setup_context=_save_products)
