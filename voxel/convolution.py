"""Submanifold sparse convolution in any dimension: y[v] = Σ_o W_oᵀ x[v + o] over the stored voxels.

The output lives on the voxels of the input; absent neighbours count as zero.

Reference: Graham, Engelcke, van der Maaten, 3D Semantic Segmentation with Submanifold Sparse
Convolutional Networks, CVPR 2018; Choy, Gwak, Savarese, 4D Spatio-Temporal ConvNets, CVPR 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from voxel.checks import check_count, check_positive, check_same_kind
from voxel.neighbours import kernel_map, kernel_offsets, pairs_within
from voxel.sparse_matrix import SparseMatrix
from voxel.sparse_tensor import SparseTensor

__all__ = ["GaussianConv", "SparseConv", "gaussian_matrix"]


class SparseConv(nn.Module):
    """Learned submanifold convolution, stride 1.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd extent of the kernel along each axis.
        dimension: D, the number of spatial dimensions, 1 or more.
        shape: "cube", kernel_size^D taps, or "cross", D (kernel_size - 1) + 1 taps along the axes.
        dilation: Spacing of the taps.
        bias: Whether to add a learned constant to each channel.

    Attributes:
        offsets: (O, D) the taps' offsets; a cube's are in the order of `torch.nn.Conv3d`'s weights.
        weight: (O, in_channels, out_channels).
        bias: (out_channels,), or None.

    Maps a SparseTensor with (V, in_channels) features to one with (V, out_channels) on the same voxels.
    Differentiable in the features, the weight and the bias. Cost: O(V · taps · in · out).
    """

    offsets: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dimension: int,
        shape: str = "cube",
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels, 1)
        check_count("out_channels", out_channels, 1)
        self.in_channels, self.out_channels, self.dimension = in_channels, out_channels, dimension
        self.register_buffer("offsets", kernel_offsets(kernel_size, dimension, shape, dilation), False)
        self.weight = nn.Parameter(torch.empty(len(self.offsets), in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly within ±1/√(taps · in_channels), as PyTorch's convolutions do."""
        bound = 1 / math.sqrt(self.weight.shape[0] * self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve `tensor`."""
        if tensor.dimension != self.dimension:
            raise ValueError(f"the input must have dimension {self.dimension}, got {tensor.dimension}")
        if tensor.features.shape[1] != self.in_channels:
            raise ValueError(
                f"the input must have {self.in_channels} channels, got {tensor.features.shape[1]}"
            )
        features = tensor.features
        check_same_kind("features", features, "weight", self.weight)
        output = features.new_zeros((len(tensor), self.out_channels))
        if self.bias is not None:
            output = output + self.bias
        maps = kernel_map(tensor.index, self.offsets)
        for weight, (source, target) in zip(self.weight, maps, strict=True):
            output = output.index_add(0, target, (features[source] @ weight).to(output.dtype))
        return tensor.replace(output)

    def extra_repr(self) -> str:
        """Describe the convolution in `repr`."""
        return (
            f"{self.in_channels}, {self.out_channels}, taps={len(self.offsets)}, dimension={self.dimension}"
        )


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
