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

from hdcrf.relaxed.energy import PairwisePotential, block_norms, without_means
from voxel.checks import check_finite, check_floating
from voxel.precision import full_precision

__all__ = ["SpatialPotential", "gaussian_window", "symmetric_filters"]

_MOST_SPECTRUM = 1 << 27  # frequencies times K³: a second or so; 9 x 9 and 21 labels, 2^23, take 0.1 s
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class SpatialPotential(PairwisePotential):
    """Pairwise potentials by relative position.

    Args:
        shape: (B, *S), one to three axes; the P points are the grids' places, the last axis running fastest.
            The B grids do not see each other.
        filters: w (K, K, *k), every size odd; w[λ, μ, δ + s] is the energy added when a place carries λ and
            the place δ from it carries μ.

    Raises:
        TypeError: If the filters are not floating.
        ValueError: If they do not fit the grid's axes, have another shape, or are not finite.
    """

    def __init__(self, shape: Sequence[int], filters: Tensor) -> None:
        self.shape = tuple(shape)
        axes = len(self.shape) - 1
        if axes not in _CONVOLUTIONS:
            raise ValueError(f"`shape` must be (B, *S) with one to three axes, got {self.shape}")
        check_floating("filters", filters)
        sizes = filters.shape[2:]
        square = filters.dim() == 2 + axes and filters.shape[0] == filters.shape[1]
        if not square or any(size % 2 == 0 for size in sizes):
            raise ValueError(
                f"`filters` must have shape (K, K, *k) with an odd size for each of {axes} axes, "
                f"got {tuple(filters.shape)}"
            )
        check_finite("filters", filters)
        self.num_points = math.prod(self.shape)
        self.num_labels = filters.shape[0]
        self.filters = self.like = symmetric_filters(filters)

    def _convolve(self, values: Tensor, filters: Tensor) -> Tensor:
        """Convolve (P, C) values with (C', C, *k) filters; beyond the grid are zeros."""
        images = values.reshape(*self.shape, -1).movedim(-1, 1)  # seen by channels last: nothing is copied
        padding = [size // 2 for size in filters.shape[2:]]
        # TF32, cuDNN's default, has three digits: energies would seem to rise. The backward pass may use it.
        cudnn = torch.backends.cudnn
        with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
            convolved: Tensor = _CONVOLUTIONS[len(padding)](images, filters, padding=padding)
        return convolved.movedim(1, -1).reshape(self.num_points, -1)

    @full_precision
    def message(self, q: Tensor) -> Tensor:
        """Return the convolution of q, (P, K)."""
        return self._convolve(q, self.filters)

    @torch.no_grad()
    @full_precision
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the better of two bounds on either side: sums of norms, and the spectrum.

        The norms of the blocks at all shifts that stay on the grid add up to a bound from below and above,
        (P, 1), whatever the signs. The spectrum, (1, 1), knows signs, but not where the grid ends.
        """
        norms = block_norms(self.filters.movedim((0, 1), (-2, -1)))
        sums = self._convolve(norms.new_ones((self.num_points, 1)), norms[None, None])
        spectrum = spectral_bounds(self.filters)
        if spectrum is None:
            return sums, sums
        lower, upper = (bound if bool(bound < sums.max()) else sums for bound in spectrum)
        return lower, upper


def spectral_bounds(filters: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return bounds l, u, (1, 1), of symmetric filters (K, K, *k), from their spectrum.

    On an endless grid the filters are a product with a Hermitian K × K matrix at each frequency, Ŵ(ω) = Σ_δ
    k(δ) e^{-iωδ}. On a part of it the eigenvalues of M, for steps that sum to zero, lie between the least and
    the largest of these matrices'. They are computed at n = 8 s frequencies along each axis, s being the
    window's reach. Between these, no real trigonometric polynomial of degree s exceeds its largest size at
    them by more than a factor 1 / cos(π s / n) an axis (M. Riesz), and each number uᴴ Ŵ(ω) u is one.

    Returns:
        The bounds, or None where there would be too many eigenvalues to compute.
    """
    labels, axes = filters.shape[0], tuple(range(2, filters.dim()))
    reaches = [size // 2 for size in filters.shape[2:]]
    counts = [max(1, 8 * reach) for reach in reaches]
    if math.prod(counts) * labels**3 > _MOST_SPECTRUM:
        return None
    margins = [count - size for count, size in zip(counts, filters.shape[2:], strict=True)]
    ends = [side for margin in reversed(margins) for side in (0, margin)]
    padded = functional.pad(without_means(filters, 0, 1), ends).roll([-reach for reach in reaches], axes)
    # At opposite frequencies the eigenvalues are the same.
    values = torch.linalg.eigvalsh(torch.fft.rfftn(padded, dim=axes).movedim((0, 1), (-2, -1)))
    between = math.prod(1 / math.cos(math.pi * reach / max(1, 8 * reach)) for reach in reaches)
    size = between * values.abs().max()
    lower, upper = (
        (between * extreme + (between - 1) * size).clamp(min=0).minimum(size).view(1, 1)
        for extreme in (-values.min(), values.max())
    )
    return lower, upper


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
