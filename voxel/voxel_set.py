"""A set of voxels and what follows from it: its index, its kernel maps, the coarser sets.

All are computed when first needed and kept for as long as the set is. The tensors that a network makes on
one set of voxels share it, so each map is computed once, on the way down and up a U-Net and in every layer.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from voxel.checks import INTEGER_DTYPES, check_count, check_held, check_tensor
from voxel.coordinate_index import CoordinateIndex, unique_rows
from voxel.neighbours import kernel_map, kernel_offsets

__all__ = ["LARGEST_STRIDE", "VoxelSet"]

LARGEST_STRIDE = 2**31 - 1


class VoxelSet:
    """Distinct voxels in any number of dimensions.

    Args:
        coordinates: (V, 1 + D) integers, the batch index first; no row twice. Not to be changed afterwards.

    Attributes:
        coordinates: (V, 1 + D) int32.

    Raises:
        TypeError: If the coordinates are not integers.
        ValueError: If the shape does not fit, a batch index is negative, a coordinate does not fit into
            int32, or (when the index is first needed) a coordinate occurs twice.
    """

    def __init__(self, coordinates: Tensor) -> None:
        check_tensor("coordinates", coordinates)
        if coordinates.dtype not in INTEGER_DTYPES:
            raise TypeError(
                f"`coordinates` must hold integers, got {coordinates.dtype}; quantise positions with "
                "SparseTensor.from_points, or convert integers of another type with .long()"
            )
        if coordinates.dim() != 2 or coordinates.shape[1] < 2:
            raise ValueError(
                "`coordinates` must have shape (V, 1 + D), the batch index first, "
                f"got {tuple(coordinates.shape)}"
            )
        check_held("coordinates", coordinates)
        if coordinates.numel():
            if int(coordinates[:, 0].min()) < 0:
                raise ValueError("`coordinates` has a negative batch index in column 0")
            if int(coordinates.max()) >= 2**31 or int(coordinates.min()) < -(2**31):
                raise ValueError("`coordinates` must fit into int32; shift or coarsen them")
        self.coordinates = coordinates.to(torch.int32)
        self._coarser: dict[int, VoxelSet] = {}
        self._kernel_maps: dict[tuple[int, str, int, int], list[tuple[Tensor, Tensor]]] = {}

    @property
    def dimension(self) -> int:
        """D, the number of spatial dimensions, without the batch."""
        return self.coordinates.shape[1] - 1

    def __len__(self) -> int:
        return self.coordinates.shape[0]

    @cached_property
    def index(self) -> CoordinateIndex:
        """The coordinate index."""
        return CoordinateIndex(self.coordinates)

    def coarser(self, stride: int) -> VoxelSet:
        """Return the distinct voxels floor(x / stride), those of each batch apart; for stride 1 this set."""
        if check_count("stride", stride, 1, LARGEST_STRIDE) == 1:
            return self
        if stride not in self._coarser:
            batch, spatial = self.coordinates[:, :1], self.coordinates[:, 1:]
            coarse = torch.cat([batch, torch.div(spatial, stride, rounding_mode="floor")], 1)
            self._coarser[stride] = VoxelSet(unique_rows(coarse)[0])
        return self._coarser[stride]

    def kernel_map(
        self, kernel_size: int, shape: str = "cube", dilation: int = 1, stride: int = 1
    ) -> list[tuple[Tensor, Tensor]]:
        """List the pairs of rows (fine, coarse) with x_fine = stride · x_coarse + offset for each offset.

        Args:
            kernel_size: As in `kernel_offsets`, which gives the offsets.
            shape: As there.
            dilation: As there.
            stride: The coarse voxels are those of `coarser(stride)`.

        Returns:
            As `kernel_map`.
        """
        coarse = self.coarser(stride)
        key = (kernel_size, shape, dilation, stride)
        if key not in self._kernel_maps:
            offsets = kernel_offsets(kernel_size, self.dimension, shape, dilation)
            outputs = None if coarse is self else coarse.coordinates
            # Autograd will have to save what is computed here, which it cannot what inference mode makes.
            with torch.inference_mode(False):
                self._kernel_maps[key] = kernel_map(self.index, offsets, coordinates=outputs, stride=stride)
        return self._kernel_maps[key]
