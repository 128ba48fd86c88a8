"""The d-cube path: Gaussian filtering on a regular grid of which only the occupied voxels are stored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from voxel.blur import MOST_ROUNDS
from voxel.checks import MOST_RINGS, check_choice, check_count
from voxel.coordinate_index import unique_rows
from voxel.coordinate_range import check_coordinate_range
from voxel.filter_operator import check_features
from voxel.gaussian_convolution import gaussian_matrix
from voxel.sparse_matrix import SparseMatrix
from voxel.splat_blur_slice import Cells, SplatBlurSlice, axis_steps, power, with_batch

__all__ = ["VoxelGrid"]

LARGEST_LINEAR_DIMENSION = 6
_TRUNCATE = 3.0


class VoxelGrid(SplatBlurSlice):
    """Gaussian filtering K ≈ exp(-½‖f_i - f_j‖²) on a sparse grid of d-cubes, K = c · S B Sᵀ.

    With `interpolation="linear"`, S interpolates d-linearly between the 2^d corners of a point's cube, and
    B is the blur ¼ ½ ¼, `order` times along each of the d axes. Linear interpolation has the variance 1/6
    on the way in and on the way out, so the voxels have an edge of (n/2 + 1/3)^-½ standard deviations and
    c = (2π (n/2 + 1/3))^{d/2}.

    With `interpolation="nearest"`, S takes a point to the voxel that holds it, whatever d, and B is one
    sparse convolution with the Gaussian of variance 1 - h²/6 (in squared standard deviations; h = 1/2n is
    the edge of a voxel), summed over the occupied voxels within 3 standard deviations; c = (1 - h²/6)^{-d/2}.
    It crosses gaps by itself, so `halo` must be 0.

    Args:
        features: (N, d) float32 or float64, already divided by their standard deviations; any d ≥ 1.
        batch: (N,) integers; points of different batches do not see each other. None: all are one.
        order: n, 1 to 16, the accuracy: rounds of blur, or half the voxels per standard deviation.
        halo: h, 0 to 8, the rings of neighbours stored around the occupied vertices (linear only).
        interpolation: "linear", "nearest", or None: linear for d ≤ 6, nearest above.
        backend: "auto", compiled kernels where they can run; "reference", PyTorch; or "native", the kernels.

    Attributes:
        num_vertices: V, the number of voxels (linear: voxel corners) stored.
        dimension: d.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If one has the wrong shape, or is not finite, or linear interpolation is asked for in
            more than 6 dimensions.
        voxel.CoordinateRangeError: If a feature is so large that its voxel coordinate cannot be held.

    Differentiable in the features with linear interpolation; nearest interpolation is constant in them.
    Deterministic on the CPU for a given number of threads.

    Reference: the grid is that of Paris and Durand, A Fast Approximation of the Bilateral Filter using a
    Signal Processing Approach, ECCV 2006; nearest splatting with a sparse convolution is the trilateral
    CRF's way (Choy, Gwak, Savarese, CVPR 2019, section 5).
    """

    def __init__(
        self,
        features: Tensor,
        *,
        batch: Tensor | None = None,
        order: int = 1,
        halo: int = 0,
        interpolation: str | None = None,
        backend: str = "auto",
    ) -> None:
        check_count("order", order, 1, MOST_ROUNDS)
        check_count("halo", halo, 0, MOST_RINGS)
        dimension = check_features(features).shape[1]
        if interpolation is None:
            interpolation = "linear" if dimension <= LARGEST_LINEAR_DIMENSION else "nearest"
        check_choice("interpolation", interpolation, ("linear", "nearest"))
        self.linear = interpolation == "linear"
        if self.linear and dimension > LARGEST_LINEAR_DIMENSION:
            raise ValueError(
                f"`interpolation` must be 'nearest' for d = {dimension}: linear, over 2^d corners, "
                f"is offered up to d = {LARGEST_LINEAR_DIMENSION}"
            )
        if halo and not self.linear:
            raise ValueError(
                f"`halo` must be 0 with nearest interpolation, whose convolution crosses gaps, got {halo}"
            )
        if self.linear:
            self._scale = math.sqrt(order / 2 + 1 / 3)
            constant = power(2 * math.pi * self._scale**2, dimension / 2)
            steps = torch.eye(dimension, dtype=torch.int64, device=features.device)
        else:
            self._scale = 2.0 * order
            constant = power(1 / _kernel_variance(order), dimension / 2)
            steps = torch.empty(0, dimension, dtype=torch.int64, device=features.device)
        super().__init__(
            features,
            batch,
            axes=axis_steps(steps, batch),
            order=order,
            halo=halo,
            constant=constant,
            backend=backend,
        )

    @cached_property
    def blurs(self) -> Sequence[SparseMatrix]:
        """The blurs along the axes, or the one convolution."""
        return super().blurs if self.linear else [self._gaussian()]

    def _gaussian(self) -> SparseMatrix:
        coordinates = self.structure.coordinates
        if self.batch is None:
            coordinates = torch.nn.functional.pad(coordinates, (1, 0))
        deviation = math.sqrt(_kernel_variance(self.order))
        truncate = _TRUNCATE / deviation
        return gaussian_matrix(
            coordinates, deviation * self._scale, truncate, self.features.dtype, native=self.native
        )

    def _cells(self, name: str, features: Tensor, batch: Tensor | None) -> tuple[Cells, Tensor]:
        check_coordinate_range(name, features, self._scale)
        scaled = features * self._scale
        lowest = torch.floor(scaled.detach())
        distinct, cell = unique_rows(with_batch(lowest.to(torch.int32), batch))
        if not self.linear:
            return Cells(cell, torch.ones_like(features[:, :1]), distinct[:, :0]), distinct[None]
        fraction = scaled - lowest
        ways = list(itertools.product((0, 1), repeat=features.shape[1]))
        bits = torch.tensor(ways, dtype=torch.int32, device=features.device)  # (P, d)
        weights = torch.ones_like(features[:, :1])
        for axis in range(features.shape[1]):
            part = fraction[:, axis : axis + 1]
            weights = (weights[:, :, None] * torch.stack([1 - part, part], 2)).flatten(1)
        return Cells(cell, weights, distinct[:, :0]), distinct + axis_steps(bits, batch)[:, None]

    def diagonal(self) -> Tensor:
        """Return the exact diagonal of K, (N,): what each point gets back of its own value.

        A way that leaves a cube along one axis cannot come back along another. So between the corners of
        one cube, the blur is the product of its restrictions to the pairs of corners along each axis.
        """
        weights = self.structure.cells.weights
        if not self.linear:
            return weights[:, 0] * self.constant
        blurred = weights
        corners = torch.arange(weights.shape[1], device=weights.device)
        for axis, blur in enumerate(self.axis_blurs):
            bit = 1 << (self.dimension - 1 - axis)
            partner = corners ^ bit
            towards = torch.where(corners & bit > 0, self.order - 1, self.order + 1)  # column of the partner
            stay = blur.taps[:, self.order][self.structure.cell_vertices]  # (M, P)
            cross = blur.taps[self.structure.cell_vertices, towards]
            cell = self.structure.cells.cell
            blurred = stay[cell] * blurred + cross[cell] * blurred[:, partner]
        return self.constant * (weights * blurred).sum(1)


def _kernel_variance(order: int) -> float:
    """Variance of the convolution with nearest interpolation: 1, less 1/12 h² in and 1/12 h² out."""
    edge = 1 / (2 * order)
    return 1 - edge * edge / 6
