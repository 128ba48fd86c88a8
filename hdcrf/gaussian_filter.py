"""Gaussian filtering in feature space, by any of the interchangeable methods."""

from __future__ import annotations

from torch import Tensor

from hdcrf.exact import ExactGaussian
from lattice import PermutohedralLattice
from voxel import FilterOperator, VoxelGrid
from voxel.backend import BACKENDS
from voxel.blur import MOST_ROUNDS
from voxel.checks import MOST_RINGS, check_choice, check_count

__all__ = ["METHODS", "build_filter", "gaussian_filter"]

METHODS = ("permutohedral", "voxel", "exact")


def build_filter(
    features: Tensor,
    *,
    method: str = "permutohedral",
    batch: Tensor | None = None,
    order: int = 1,
    halo: int = 0,
    backend: str = "auto",
) -> FilterOperator:
    """Build the operator K ≈ exp(-½‖f_i - f_j‖²) once, to filter many times.

    Args:
        features: (N, d) float32 or float64, already divided by their standard deviations.
        method: "permutohedral" (lattice.PermutohedralLattice), "voxel" (voxel.VoxelGrid), or "exact"
            (brute force, O(N²), which ignores `order` and `halo`).
        batch: (N,) integers; points of different batches do not see each other.
        order: Accuracy, 1 to 16: the rounds of blur.
        halo: Accuracy, 0 to 8: the rings of vertices stored around the occupied ones; 0 for "voxel" in more
            than 6 dimensions, which crosses gaps by itself.
        backend: Of the fast methods: "auto", compiled kernels where they can run; "reference", PyTorch; or
            "native", the kernels.

    Returns:
        The operator: `filter`, `degree`, `diagonal`, and for the lattices `splat`, `blur` and `slice`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        voxel.CoordinateRangeError: If a feature is so large that its lattice coordinate cannot be held.
    """
    check_choice("method", method, METHODS)
    check_count("order", order, 1, MOST_ROUNDS)
    check_count("halo", halo, 0, MOST_RINGS)
    check_choice("backend", backend, BACKENDS)
    if method == "exact" and backend == "native":
        raise ValueError("`backend='native'` has no kernel for method='exact'; use 'auto', or another method")
    if method == "permutohedral":
        return PermutohedralLattice(features, batch=batch, order=order, halo=halo, backend=backend)
    if method == "voxel":
        return VoxelGrid(features, batch=batch, order=order, halo=halo, backend=backend)
    return ExactGaussian(features, batch=batch)


def gaussian_filter(
    features: Tensor,
    values: Tensor,
    *,
    method: str = "permutohedral",
    normalization: str = "none",
    batch: Tensor | None = None,
    query: Tensor | None = None,
    query_batch: Tensor | None = None,
    order: int = 1,
    halo: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Return Σ_j exp(-½‖f_i - f_j‖²) v_j for every point i, approximately, in any dimension.

    Args:
        features: (N, d) float32 or float64, already divided by their standard deviations.
        values: (N, C), of the same dtype and device, finite.
        method: "permutohedral", "voxel" or "exact".
        normalization: With D = diag(K 1): "none" K, "before" K D⁻¹, "after" D⁻¹ K (a weighted mean),
            "symmetric" D⁻½ K D⁻½.
        batch: (N,) integers; points of different batches do not see each other.
        query: (M, d) features at which to read the result instead; where no point reaches, it is 0.
        query_batch: (M,) batch index of each query; needed exactly if `batch` is given.
        order: Accuracy of the fast methods, 1 to 16: the rounds of blur.
        halo: Accuracy, 0 to 8: rings of vertices stored around the occupied ones; 0 for "voxel" in more
            than 6 dimensions, which crosses gaps by itself.
        backend: Of the fast methods: "auto", compiled kernels where they can run; "reference", PyTorch; or
            "native", the kernels.

    Returns:
        (N, C), or (M, C) with a query.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.

    Differentiable in values, features and query.
    """
    operator = build_filter(features, method=method, batch=batch, order=order, halo=halo, backend=backend)
    return operator.filter(values, normalization=normalization, query=query, query_batch=query_batch)
