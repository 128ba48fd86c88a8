"""The separable Gaussian over pixel positions, as one operation on the compiled kernel.

It stands for the two convolutions of `hdcrf.pairwise.SmoothnessKernel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxel.backend import kernels, plain

__all__ = ["plain_factors", "smooth", "smooth_into"]


@torch.library.custom_op("hdcrf::smooth", mutates_args=())
def smooth(
    images: Tensor,  # (B, H, W, K)
    down: Tensor,  # (2 radius + 1,) symmetric: the taps over the rows
    along: Tensor,  # (2 radius + 1,) symmetric: those along a row
    rows_left: Tensor | None,  # (H,) and so on: factors of the diagonals L and R, None for ones
    columns_left: Tensor | None,
    rows_right: Tensor | None,
    columns_right: Tensor | None,
) -> Tensor:
    """Return L (G_rows ⊗ G_columns) R v, zero outside the image; differentiable in the images."""
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    return smooth_into(result, images, down, along, rows_left, columns_left, rows_right, columns_right)


def smooth_into(
    result: Tensor,
    images: Tensor,
    down: Tensor,
    along: Tensor,
    rows_left: Tensor | None,
    columns_left: Tensor | None,
    rows_right: Tensor | None,
    columns_right: Tensor | None,
) -> Tensor:
    """Do what `smooth` does, into a contiguous `result` (B, H, W, K)."""
    if images.numel():
        factors = plain_factors(down, images.shape, rows_left, columns_left, rows_right, columns_right)
        threads = torch.get_num_threads()
        kernels().smooth(plain(images), plain(down), plain(along), *factors, result, threads)
    return result


def plain_factors(
    like: Tensor,
    shape: Sequence[int],
    rows_left: Tensor | None,
    columns_left: Tensor | None,
    rows_right: Tensor | None,
    columns_right: Tensor | None,
) -> list[Tensor]:
    """Return the factors for images of shape (B, H, W, …), in this order, with ones for None."""
    lengths = (shape[1], shape[2]) * 2
    given = (rows_left, columns_left, rows_right, columns_right)
    return [
        like.new_ones(length) if factor is None else plain(factor)
        for factor, length in zip(given, lengths, strict=True)
    ]


@smooth.register_fake
def _(images, down, along, rows_left, columns_left, rows_right, columns_right):  # type: ignore[no-untyped-def]
    return torch.empty_like(images, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _images, *rest = inputs
    ctx.save_for_backward(*rest)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    down, along, rows_left, columns_left, rows_right, columns_right = ctx.saved_tensors
    # G is symmetric, so the adjoint exchanges L and R.
    adjoint = smooth(gradient, down, along, rows_right, columns_right, rows_left, columns_left)
    return adjoint, None, None, None, None, None, None


smooth.register_autograd(_backward, setup_context=_setup_context)
