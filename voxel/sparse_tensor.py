"""Sparse tensors in coordinate form: integer coordinates and a feature vector at each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from voxel.checks import (
    check_batch_index,
    check_finite,
    check_matrix,
    check_positive,
    check_same_kind,
)
from voxel.coordinate_index import CoordinateIndex, unique_rows
from voxel.coordinate_range import check_coordinate_range
from voxel.voxel_set import VoxelSet

__all__ = ["SparseTensor", "check_sparse_tensor"]


class SparseTensor:
    """Features on a sparse set of voxels, in any number of dimensions.

    Args:
        coordinates: (V, 1 + D) integers, the batch index first; no row twice. Not to be changed afterwards.
        features: (V, C) float32 or float64.

    Attributes:
        voxels: The VoxelSet, which `replace` shares. It keeps the kernel maps of all layers that the tensors
            on it went through, so keep `features` rather than the tensor where nothing else is needed.
        features: (V, C).

    Raises:
        TypeError: If the coordinates are not integers or the features not floating.
        ValueError: If the shapes do not fit, a batch index is negative, a coordinate does not fit into
            int32, or (when the index is first needed) a coordinate occurs twice.
    """

    def __init__(self, coordinates: Tensor, features: Tensor) -> None:
        self._set(VoxelSet(coordinates), features)

    def _set(self, voxels: VoxelSet, features: Tensor) -> None:
        check_matrix("features", features, "(V, C)", rows=len(voxels))
        if features.device != voxels.coordinates.device:
            raise ValueError(
                f"`features` must be on {voxels.coordinates.device}, as the coordinates are, "
                f"got {features.device}"
            )
        self.voxels, self.features = voxels, features

    @staticmethod
    def from_voxels(voxels: VoxelSet, features: Tensor) -> SparseTensor:
        """Return a tensor with features (V, C) on a set of voxels that others share."""
        tensor = SparseTensor.__new__(SparseTensor)
        tensor._set(voxels, features)
        return tensor

    @staticmethod
    def from_points(
        positions: Tensor, features: Tensor, voxel_size: float, batch: Tensor | None = None
    ) -> tuple[SparseTensor, Tensor]:
        """Quantise points to voxels; points that share a voxel are averaged.

        Args:
            positions: (N, D) floating positions, in the unit of `voxel_size`.
            features: (N, C).
            voxel_size: Edge of a voxel.
            batch: (N,) batch index, or None for a single batch.

        Returns:
            The sparse tensor, and the (N,) int64 voxel of each point.
        """
        check_matrix("positions", positions, "(N, D)")
        check_finite("positions", positions)
        check_matrix("features", features, "(N, C)", rows=positions.shape[0])
        check_positive("voxel_size", voxel_size)
        if batch is not None:
            check_batch_index("batch", batch, positions.shape[0], positions)
        check_coordinate_range("positions", positions, 1 / voxel_size)
        cells = torch.floor(positions / voxel_size).to(torch.int64)
        first = cells.new_zeros(len(cells)) if batch is None else batch.to(torch.int64)
        voxels, voxel = unique_rows(torch.cat([first[:, None], cells], 1))
        sums = features.new_zeros((len(voxels), features.shape[1])).index_add(0, voxel, features)
        counts = torch.bincount(voxel, minlength=len(voxels)).to(features.dtype)
        return SparseTensor(voxels, sums / counts[:, None]), voxel

    @property
    def coordinates(self) -> Tensor:
        """The (V, 1 + D) int32 coordinates, the batch index first."""
        return self.voxels.coordinates

    @property
    def dimension(self) -> int:
        """D, the number of spatial dimensions, without the batch."""
        return self.voxels.dimension

    def __len__(self) -> int:
        return len(self.voxels)

    @property
    def index(self) -> CoordinateIndex:
        """The coordinate index, built when first needed and shared by `replace`."""
        return self.voxels.index

    def replace(self, features: Tensor) -> SparseTensor:
        """Return a tensor with other features (V, C') on the same voxels."""
        return SparseTensor.from_voxels(self.voxels, features)

    def map(self, function: Callable[[Tensor], Tensor]) -> SparseTensor:
        """Return a tensor with the features function(features), for example `tensor.map(torch.relu)`.

        What comes back in half precision, as under `torch.autocast`, is converted to the features' dtype.
        """
        features = function(self.features)
        if isinstance(features, Tensor) and features.dtype in (torch.float16, torch.bfloat16):
            features = features.to(self.features.dtype)
        return self.replace(features)

    def concatenate(self, other: SparseTensor) -> SparseTensor:
        """Return a tensor with the channels of this one and then those of another on the same voxels.

        Raises:
            TypeError: If the other is no SparseTensor, or has another dtype.
            ValueError: If it is on another device, or its coordinates are others or in another order.
        """
        check_sparse_tensor("other", other)
        check_same_kind("other", other.features, "self", self.features)
        if other.voxels is not self.voxels and not torch.equal(other.coordinates, self.coordinates):
            raise ValueError(
                "`other` must have the coordinates of this tensor in the same order; bring one onto the "
                "other's, for example with SparseConvTranspose"
            )
        return self.replace(torch.cat([self.features, other.features], 1))

    def __repr__(self) -> str:
        return (
            f"SparseTensor({len(self)} voxels, D={self.dimension}, C={self.features.shape[1]}, "
            f"{self.features.dtype}, {self.features.device})"
        )


def check_sparse_tensor(name: str, value: object) -> SparseTensor:
    """Return `value` if it is a SparseTensor, else raise TypeError."""
    if not isinstance(value, SparseTensor):
        raise TypeError(f"`{name}` must be a voxel.SparseTensor, got {type(value).__name__}")
    return value
