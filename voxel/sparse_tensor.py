"""Sparse tensors in coordinate form: integer coordinates and a feature vector at each."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from voxel.checks import check_batch_index, check_finite, check_matrix, check_positive, check_tensor
from voxel.coordinate_index import CoordinateIndex, unique_rows
from voxel.coordinate_range import check_coordinate_range

__all__ = ["SparseTensor"]


class SparseTensor:
    """Features on a sparse set of voxels, in any number of dimensions.

    Args:
        coordinates: (V, 1 + D) integers, the batch index first; no row twice.
        features: (V, C) float32 or float64.

    Raises:
        TypeError: If the coordinates are not integers or the features not floating.
        ValueError: If the shapes do not fit, a batch index is negative, a coordinate does not fit into
            int32, or (when the index is first needed) a coordinate occurs twice.
    """

    def __init__(self, coordinates: Tensor, features: Tensor) -> None:
        check_tensor("coordinates", coordinates)
        if (
            coordinates.dtype.is_floating_point
            or coordinates.dtype.is_complex
            or coordinates.dtype == torch.bool
        ):
            raise TypeError(
                f"`coordinates` must hold integers, got {coordinates.dtype}; "
                "quantise positions with SparseTensor.from_points"
            )
        if coordinates.dim() != 2 or coordinates.shape[1] < 2:
            raise ValueError(
                "`coordinates` must have shape (V, 1 + D), the batch index first, "
                f"got {tuple(coordinates.shape)}"
            )
        check_matrix("features", features, "(V, C)", rows=coordinates.shape[0])
        if features.device != coordinates.device:
            raise ValueError(
                f"`features` must be on {coordinates.device}, as `coordinates` are, got {features.device}"
            )
        if coordinates.numel():
            if int(coordinates[:, 0].min()) < 0:
                raise ValueError("`coordinates` has a negative batch index in column 0")
            if int(coordinates.max()) >= 2**31 or int(coordinates.min()) < -(2**31):
                raise ValueError("`coordinates` must fit into int32; shift or coarsen them")
        self.coordinates = coordinates.to(torch.int32)
        self.features = features

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
    def dimension(self) -> int:
        """D, the number of spatial dimensions, without the batch."""
        return self.coordinates.shape[1] - 1

    def __len__(self) -> int:
        return self.coordinates.shape[0]

    @cached_property
    def index(self) -> CoordinateIndex:
        """The coordinate index, built when first needed and shared by `replace`."""
        return CoordinateIndex(self.coordinates)

    def replace(self, features: Tensor) -> SparseTensor:
        """Return a tensor with other features (V, C') on the same coordinates, sharing their index."""
        check_matrix("features", features, "(V, C)", rows=len(self))
        other = SparseTensor.__new__(SparseTensor)
        other.coordinates, other.features = self.coordinates, features
        other.__dict__["index"] = self.index
        return other

    def __repr__(self) -> str:
        return (
            f"SparseTensor({len(self)} voxels, D={self.dimension}, C={self.features.shape[1]}, "
            f"{self.features.dtype}, {self.features.device})"
        )
