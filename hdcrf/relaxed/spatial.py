"""Spatial potentials: any function of the relative position on a grid, within a window.

    ψ_ij(λ, μ) = k_{λ,μ}(p_j - p_i) for places at most s steps apart along each axis, else 0.

The message is a dense convolution with K × K filters (Larsson et al. 2017, equation 8). A potential belongs
to a pair, whichever of the two is called i, so k_{λ,μ}(δ) = k_{μ,λ}(-δ), and there is none of a point with
itself, k(0) = 0. Filters w of any values stand for the same energy as their symmetric part, which is what is
used:

    k_{λ,μ}(δ) = ½ (w_{λ,μ}(δ) + w_{μ,λ}(-δ)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.relaxed.energy import PairwisePotential, block_norms

__all__ = ["SpatialPotential", "gaussian_window", "symmetric_filters"]

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class SpatialPotential(PairwisePotential):
    """Pairwise potentials by relative position.

    Args:
        shape: (B, *S), one to three axes; the P points are the grids' places, the last axis running fastest.
            The B grids do not see each other.
        filters: w (K, K, *k), every size odd; w[λ, μ, δ + s] is the energy added when a place carries λ and
            the place δ from it carries μ.
    """

    def __init__(self, shape: Sequence[int], filters: Tensor) -> None:
        self.shape = tuple(shape)
        self.num_points = math.prod(self.shape)
        self.num_labels = filters.shape[0]
        self.filters = symmetric_filters(filters)

    def _convolve(self, values: Tensor, filters: Tensor) -> Tensor:
        """Convolve (P, C) values with (C', C, *k) filters; beyond the grid are zeros."""
        images = values.reshape(*self.shape, -1).movedim(-1, 1)  # seen by channels last: nothing is copied
        padding = [size // 2 for size in filters.shape[2:]]
        convolved: Tensor = _CONVOLUTIONS[len(padding)](images, filters, padding=padding)
        return convolved.movedim(1, -1).reshape(self.num_points, -1)

    def message(self, q: Tensor) -> Tensor:
        """Return the convolution of q, (P, K)."""
        return self._convolve(q, self.filters)

    @torch.no_grad()
    def bound(self) -> Tensor:
        """Return for each place the sum of the norms of the blocks within the grid: (P, 1)."""
        norms = block_norms(self.filters.movedim((0, 1), (-2, -1)))
        return self._convolve(norms.new_ones((self.num_points, 1)), norms[None, None])


def symmetric_filters(filters: Tensor) -> Tensor:
    """Return the symmetric part of filters w (K, K, *k), without what a place does to itself."""
    axes = tuple(range(2, filters.dim()))
    symmetric = 0.5 * (filters + filters.transpose(0, 1).flip(axes))
    others = torch.ones(filters.shape[2:], dtype=torch.bool, device=filters.device)
    others[tuple(size // 2 for size in others.shape)] = False
    return symmetric * others


def gaussian_window(sizes: Sequence[int], sigmas: Sequence[float]) -> Tensor:
    """Return a Gaussian over a window of odd sizes *k, without its centre; it sums to one.

    Args:
        sizes: The window's size along each axis.
        sigmas: The standard deviation along each axis, in steps of the grid.
    """
    window = torch.ones((), dtype=torch.float64)
    for size, sigma in zip(sizes, sigmas, strict=True):
        steps = torch.arange(size, dtype=torch.float64) - size // 2
        window = window[..., None] * torch.exp(-0.5 * (steps / sigma) ** 2)
    window[tuple(size // 2 for size in sizes)] = 0
    total = window.sum()
    return window / total if total > 0 else window
