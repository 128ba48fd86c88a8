"""Elevation: from d-dimensional features onto the hyperplane that the permutohedral lattice lives in.

The lattice A*_d, scaled by d + 1, is the projection of (d+1)ℤ^{d+1} onto the hyperplane H_d of points
whose d + 1 coordinates sum to zero. The elevation is a similarity from ℝᵈ onto H_d: the columns of E
are orthonormal, and the scale makes the whole filter's variance one.

Reference: Adams, Baek, Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice,
Eurographics 2010, section 3.1. We use an orthonormal basis of H_d directly, and a scale for any number
of rounds of blur. Sums and products are rounded in the order of their code and Krähenbühl and Koltun's, so
that all of them put a point near the border of two simplices on the same side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from voxel.splat_blur_slice import power

__all__ = [
    "INTERPOLATION_VARIANCE",
    "calibration",
    "elevate",
    "elevation_matrix",
    "elevation_scales",
    "filter_variance",
    "lattice_scale",
    "variance_calibration",
]

INTERPOLATION_VARIANCE = 1 / 6
"""Of splatting and slicing, each linear interpolation over a simplex, 1/12 each."""


def filter_variance(order: int) -> float:
    """Variance of the filter along any direction, in squared units of one lattice step d + 1.

    The blur contributes n/2, to what splatting and slicing do.
    """
    return order / 2 + INTERPOLATION_VARIANCE


def lattice_scale(dimension: int, order: int) -> float:
    """Length on H_d of one standard deviation: (d + 1) √(n/2 + 1/6)."""
    return (dimension + 1) * math.sqrt(filter_variance(order))


def calibration(dimension: int, order: int) -> float:
    """The constant c = (2π (n/2 + 1/6))^{d/2} √(d+1) that makes the filter approximate the true sum.

    It is the integral (2π)^{d/2} of the Gaussian, times the number of vertices in a unit of feature
    volume: (d+1)^{-d} √(d+1) vertices in a unit of volume of H_d, scaled by the elevation's volume.
    """
    return variance_calibration(dimension, filter_variance(order))


def variance_calibration(dimension: int, variance: float) -> float:
    """The same constant for a whole filter of this variance, in squared units of one lattice step d + 1."""
    return power(2 * math.pi * variance, dimension / 2) * math.sqrt(dimension + 1)


def elevation_matrix(dimension: int) -> Tensor:
    """Return E (d+1, d), float64: orthonormal columns, each summing to zero.

    Column i is (1, …, 1, -(i+1), 0, …, 0) / √((i+1)(i+2)), with i + 1 leading ones.
    """
    matrix = torch.zeros(dimension + 1, dimension, dtype=torch.float64)
    for i in range(dimension):
        norm = math.sqrt((i + 1) * (i + 2))
        matrix[: i + 1, i] = 1 / norm
        matrix[i + 1, i] = -(i + 1) / norm
    return matrix


def elevation_scales(dimension: int, order: int, dtype: torch.dtype) -> Tensor:
    """Return what each feature is multiplied by, (d,): the scale of the lattice over √((i+1)(i+2))."""
    scale = torch.tensor(lattice_scale(dimension, order), dtype=dtype).to(torch.float64)
    first = torch.arange(1, dimension + 1, dtype=torch.float64)
    return (scale * (1 / (first * (first + 1)).sqrt())).to(dtype)


def elevate(features: Tensor, order: int = 1) -> Tensor:
    """Elevate features onto H_d, scaled for a number of rounds of blur.

    With s_i the scaled features, coordinate k is Σ_{i ≥ k} s_i - k s_{k-1}: a product with E, in one sweep.

    Args:
        features: (N, d) floating, in units of one standard deviation.
        order: n, the rounds of blur.

    Returns:
        (d+1, N): one row a coordinate, so that the arithmetic on coordinates runs over contiguous rows.
    """
    dimension = features.shape[1]
    scales = elevation_scales(dimension, order, features.dtype).to(features.device)
    scaled = features.T * scales[:, None]
    total = torch.zeros_like(scaled[0])
    coordinates = []
    for k in range(dimension, 0, -1):
        own = k * scaled[k - 1]  # by itself: fused with the difference it would be rounded otherwise
        coordinates.append(total - own)
        total = total + scaled[k - 1]
    return torch.stack([total, *reversed(coordinates)])
