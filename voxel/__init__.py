"""Sparse tensors on integer coordinates: index, convolution, interpolation, blur, and the d-cube filter."""

from voxel.batch_norm import SparseBatchNorm
from voxel.checks import CoordinateRangeError
from voxel.convolution import SparseConv, SparseConvTranspose
from voxel.coordinate_index import CoordinateIndex, unique_rows
from voxel.filter_operator import FilterOperator
from voxel.gaussian_convolution import GaussianConv
from voxel.neighbours import kernel_map, kernel_offsets, pairs_within
from voxel.sparse_matrix import SparseMatrix
from voxel.sparse_tensor import SparseTensor
from voxel.splat_blur_slice import SplatBlurSlice
from voxel.voxel_grid import VoxelGrid
from voxel.voxel_set import VoxelSet

__all__ = [
    "CoordinateIndex",
    "CoordinateRangeError",
    "FilterOperator",
    "GaussianConv",
    "SparseBatchNorm",
    "SparseConv",
    "SparseConvTranspose",
    "SparseMatrix",
    "SparseTensor",
    "SplatBlurSlice",
    "VoxelGrid",
    "VoxelSet",
    "kernel_map",
    "kernel_offsets",
    "pairs_within",
    "unique_rows",
]
