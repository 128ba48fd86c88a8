"""Sparse convolution with a fixed Gaussian, over all pairs of voxels within a radius."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxel.checks import check_positive
from voxel.neighbours import pairs_within
from voxel.sparse_matrix import SparseMatrix
from voxel.sparse_tensor import SparseTensor, check_sparse_tensor

__all__ = ["GaussianConv", "gaussian_matrix"]


class GaussianConv(nn.Module):
    """Depthwise convolution with a fixed Gaussian: y[v] = Σ_u exp(-|v - u|² / 2σ²) x[u].

    The sum runs over the stored voxels u of the same batch within `truncate` σ, whatever lies between; so
    unlike a chain of blurs along the axes, it crosses gaps.

    Args:
        sigma: Standard deviation in voxels.
        truncate: Radius of the kernel in units of sigma.

    Differentiable in the features. Cost: O(pairs of voxels within the radius · C).
    """

    def __init__(self, sigma: float, *, truncate: float = 3.0) -> None:
        super().__init__()
        self.sigma = check_positive("sigma", sigma)
        self.truncate = check_positive("truncate", truncate)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve every channel of `tensor`."""
        check_sparse_tensor("tensor", tensor)
        matrix = gaussian_matrix(tensor.coordinates, self.sigma, self.truncate, tensor.features.dtype)
        return tensor.replace(matrix.product(tensor.features))

    def extra_repr(self) -> str:
        """Describe the convolution in `repr`."""
        return f"sigma={self.sigma}, truncate={self.truncate}"


def gaussian_matrix(
    coordinates: Tensor, sigma: float, truncate: float, dtype: torch.dtype, *, native: bool = False
) -> SparseMatrix:
    """Return the symmetric (V, V) matrix exp(-|v - u|² / 2σ²) of the voxels within `truncate` σ.

    Args:
        coordinates: (V, 1 + D) distinct integers, batch first.
        sigma: Standard deviation in voxels.
        truncate: Radius in units of sigma.
        dtype: Of the entries.
        native: Whether its products run on the compiled kernels.
    """
    first, second, squared = pairs_within(coordinates, truncate * sigma)
    weights = torch.exp(squared.to(dtype) / (-2 * sigma * sigma))
    integer = torch.int32 if first.numel() < 2**31 else torch.int64
    counts = torch.bincount(first, minlength=coordinates.shape[0])
    pointers = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)).to(integer)
    columns = second.to(integer)
    shape = (coordinates.shape[0], coordinates.shape[0])
    return SparseMatrix(shape, weights, pointers, columns, weights, pointers, columns, native)
