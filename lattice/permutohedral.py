"""The permutohedral lattice: d + 1 vertices around a point, d + 1 axes of blur, in any dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from lattice.elevation import calibration, elevate, elevation_matrix, elevation_scales, lattice_scale
from lattice.self_term import corner_kernel, follows_all_sets
from lattice.simplex import barycentric_weights, corner_coordinates, enclosing_simplex
from voxel.backend import kernels
from voxel.blur import MOST_ROUNDS
from voxel.checks import MOST_RINGS, check_count
from voxel.coordinate_index import unique_rows
from voxel.coordinate_range import check_coordinate_range
from voxel.filter_operator import check_features
from voxel.memory import new_large
from voxel.precision import full_precision
from voxel.splat_blur_slice import Cells, SplatBlurSlice, Structure, axis_steps, with_batch

__all__ = ["PermutohedralLattice"]

_HASH_ATTEMPTS = 16
_KERNEL_MARGIN = 4  # at which the kernel of all sets is still twice as fast as PyTorch's of those that occur


class PermutohedralLattice(SplatBlurSlice):
    """Gaussian filtering K ≈ exp(-½‖f_i - f_j‖²) on the permutohedral lattice, K = c · S B_d … B_0 Sᵀ.

    Args:
        features: (N, d) float32 or float64, already divided by their standard deviations; any d ≥ 1.
        batch: (N,) integers; points of different batches do not see each other. None: all are one.
        order: n, 1 to 16, the rounds of the blur ¼ ½ ¼ along each axis. Larger is closer to a Gaussian, on a
            finer lattice. 1 is the filter of Adams et al.
        halo: h, 0 to 8, the rings of neighbours that are stored around the occupied vertices, so that the
            blur crosses gaps between them. (order, halo) = (1, 0) is the classic filter; (2, 2) and (3, 3)
            approach the exact Gaussian at many times its cost.
        backend: "auto", compiled kernels where they can run; "reference", PyTorch; or "native", the kernels.

    Attributes:
        num_vertices: V, the number of lattice vertices stored.
        dimension: d.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If one has the wrong shape, or is not finite.
        voxel.CoordinateRangeError: If a feature is so large that its lattice coordinate cannot be held.

    Differentiable in the features through the weights S, which are piecewise linear in them: exact for
    the function computed, except at the borders between simplices. Deterministic on the CPU for a given
    number of threads.

    Cost: O(N (d² + d C)) time to build and filter; S holds N (d + 1) weights.

    Reference: Adams, Baek, Davis 2010. We blur each axis n times before the next rather than going round
    all axes n times, keep the constant c that they drop, and never create a vertex while blurring.
    """

    def __init__(
        self,
        features: Tensor,
        *,
        batch: Tensor | None = None,
        order: int = 1,
        halo: int = 0,
        backend: str = "auto",
    ) -> None:
        check_count("order", order, 1, MOST_ROUNDS)
        check_count("halo", halo, 0, MOST_RINGS)
        dimension = check_features(features).shape[1]
        # The pairs of vertices at the taps of a convolution, for each neighbourhood that was asked for.
        self.kept_tap_pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        size = dimension + 1
        # Step a is (d+1) e_a - 1; the last coordinate is implied and not stored.
        steps = (size * torch.eye(size, dtype=torch.int64, device=features.device) - 1)[:, :dimension]
        super().__init__(
            features,
            batch,
            axes=axis_steps(steps, batch),
            order=order,
            halo=halo,
            constant=calibration(dimension, order),
            backend=backend,
        )

    def _structure(self, axes: Tensor) -> Structure:
        return self._native_structure() if self.native else super()._structure(axes)

    def _native_structure(self) -> Structure:
        """Build what the reference builds; cells may occur twice, where two threads found one."""
        self._check_range("features", self.features)
        features, size = self.features, self.dimension + 1
        scales = elevation_scales(self.dimension, self.order, features.dtype)
        batch = None if self.batch is None else self.batch.to(torch.int32).contiguous()
        for seed in range(_HASH_ATTEMPTS):
            built = kernels().permutohedral(
                features.detach(), scales, batch, self.halo, seed, torch.get_num_threads()
            )
            if built is not None:
                break
        else:
            raise RuntimeError(f"{_HASH_ATTEMPTS} independent 64-bit hashes of the coordinates collided")
        cell, weights, cell_vertices, rank, coordinates, links = map(torch.from_numpy, built)
        if torch.is_grad_enabled() and features.requires_grad:
            first = coordinates[:, -self.dimension :].index_select(0, cell_vertices[:, 0])
            base = torch.cat([first, -first.sum(1, keepdim=True)], 1).T // size
            weights = barycentric_weights(
                elevate(features, self.order), base.index_select(1, cell), rank.T.index_select(1, cell)
            )
        return Structure(Cells(cell, weights, rank), cell_vertices, coordinates, links)

    def _check_range(self, name: str, features: Tensor) -> None:
        check_coordinate_range(
            name,
            features,
            lattice_scale(self.dimension, self.order),
            float(elevation_matrix(self.dimension).abs().sum(1).max()),
            self.native,
        )

    def _cells(self, name: str, features: Tensor, batch: Tensor | None) -> tuple[Cells, Tensor]:
        dimension = self.dimension
        self._check_range(name, features)
        elevated = elevate(features, self.order)
        base, rank = enclosing_simplex(elevated.detach())
        weights = barycentric_weights(elevated, base, rank)

        identity = with_batch(torch.cat([base[:-1], rank[:-1].to(torch.int32)]).T, batch)
        distinct, cell = unique_rows(identity)
        ahead = distinct.shape[1] - 2 * dimension
        distinct_base, distinct_rank = distinct[:, ahead:-dimension], distinct[:, -dimension:]
        corners = corner_coordinates(distinct_base, distinct_rank)
        if batch is not None:
            corners = torch.cat([distinct[:, :1].expand(dimension + 1, -1, -1), corners], 2)
        # The ranks are a permutation of 0 … d: the last one is what is left of their sum.
        last = dimension * (dimension + 1) // 2 - distinct_rank.sum(1, keepdim=True)
        return Cells(cell, weights, torch.cat([distinct_rank, last], 1)), corners

    def diagonal(self) -> Tensor:
        """Return the exact diagonal of K, (N,): what each point gets back of its own value.

        Differentiable in the features. Cost: O(n d³) for each distinct simplex.
        """
        cells, order = self.structure.cells, self.order
        corners = self.structure.cell_vertices
        if not (self.native and follows_all_sets(cells.rank, self.num_vertices, _KERNEL_MARGIN)):
            kernel = corner_kernel(corners, cells.rank, self.scaled_axis_blurs, order)
            return self.remainder * _quadratic_form(cells.weights, kernel, cells.cell)
        points, size = cells.weights.shape
        kernel = new_large(cells.weights, (len(corners), size, size))
        threads = torch.get_num_threads()
        kernels().corner_kernel(corners, cells.rank, self.structure.links, order, kernel, threads)
        if torch.is_grad_enabled() and cells.weights.requires_grad:
            return self.constant * _quadratic_form(cells.weights, kernel, cells.cell)
        diagonal = new_large(cells.weights, (points,))
        kernels().quadratic_form(cells.weights.detach(), kernel, cells.cell, self.constant, diagonal, threads)
        return diagonal


@full_precision
def _quadratic_form(weights: Tensor, kernel: Tensor, cell: Tensor) -> Tensor:
    """Return wᵀ G w for each point's weights (N, P) and its cell's matrix in (M, P, P): (N,)."""
    half = (weights[:, None] @ kernel.index_select(0, cell))[:, 0]
    return (half * weights).sum(1)
