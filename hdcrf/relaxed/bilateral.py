"""Bilateral potentials: any function of the difference of two features, on the permutohedral lattice.

With interpolation weights S (P × V) of the points at the lattice's vertices, and a K × K block w_o for each
offset o of a neighbourhood, the potentials are the blocks of

    M = R S A Sᵀ R - blocks of i = j,        A_{uv} = w_{v-u} where v - u is in the neighbourhood, else 0,

with R = D^-½, D = diag(S G Sᵀ 1) for Gaussian taps G ("symmetric"), or √c ("none"). The message is a learned
convolution on the lattice (Larsson et al. 2017, equation 9; Jampani, Kiefel and Gehler 2016). As in
`spatial.py`, what counts is the symmetric part: w_{-o} = w_oᵀ; M is then symmetric whatever vertices there
are.

What a point would send itself is the block Σ_o a_i(o) w_o, where a_i(o) sums the products of the
interpolation weights of those corners of its simplex that are an offset o apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hdcrf.relaxed.energy import PairwisePotential, block_norms
from lattice import PermutohedralLattice
from lattice.learned_convolution import convolve
from lattice.neighbourhood import check_lattice, gaussian_taps, opposite_taps, own_taps, tap_count
from voxel.checks import check_choice, check_finite, check_floating, check_positive, check_same_kind
from voxel.precision import full_precision

__all__ = ["BilateralPotential", "symmetric_taps"]

_MOST_KEPT = 1 << 26  # elements of the own blocks, above which inference computes them strip by strip
_STRIP = 1 << 21


class BilateralPotential(PairwisePotential):
    """Pairwise potentials by the difference of features.

    Args:
        lattice: Over the P points' features.
        taps: w (O, K, K), in the order of `lattice.neighbourhood_offsets`; w[o, λ, μ] is the energy, but for
            normalisation, between a vertex that carries λ and one an offset o away that carries μ.
        neighbourhood: s.
        normalization: "symmetric" or "none".
        constant: c > 0, for "none", as `lattice.neighbourhood_lattice` gives it.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If one has the wrong shape, device or value.
    """

    @full_precision
    def __init__(
        self,
        lattice: PermutohedralLattice,
        taps: Tensor,
        *,
        neighbourhood: int,
        normalization: str = "symmetric",
        constant: float = 1.0,
    ) -> None:
        check_lattice("lattice", lattice)
        count = tap_count(lattice.dimension, neighbourhood)
        check_floating("taps", taps)
        if taps.dim() != 3 or taps.shape[0] != count or taps.shape[1] != taps.shape[2]:
            raise ValueError(f"`taps` must have shape (O, K, K) with O = {count}, got {tuple(taps.shape)}")
        check_same_kind("taps", taps, "features", lattice.features)
        check_finite("taps", taps)
        check_choice("normalization", normalization, ("symmetric", "none"))
        check_positive("constant", constant)
        self.lattice, self.neighbourhood = lattice, neighbourhood
        self.num_points, self.num_labels = lattice.num_points, taps.shape[1]
        self.taps = self.like = symmetric_taps(taps, lattice.dimension, neighbourhood)
        ones = taps.new_ones((self.num_points, 1))
        if normalization == "symmetric":
            weights, _ = gaussian_taps(lattice.dimension, neighbourhood)
            self.root = self._filter(ones, weights.to(taps)[:, None, None]).rsqrt()  # R, (P, 1)
        else:
            self.root = ones * math.sqrt(constant)
        self._own_columns, coefficients = own_taps(lattice, neighbourhood)
        self._own_factors = coefficients * self.root.square()  # (P, m)
        self._own_taps = self.taps[self._own_columns].flatten(1)  # (m, K²)
        # Autograd would keep each iteration's strips.
        keep = self.num_points * self.num_labels**2 <= _MOST_KEPT or torch.is_grad_enabled()
        self._own_blocks = self._blocks(slice(None)) if keep else None

    def _blocks(self, points: slice) -> Tensor:
        """Return the blocks of i = j of some of the points, (n, K, K)."""
        blocks = self._own_factors[points] @ self._own_taps
        return blocks.view(-1, self.num_labels, self.num_labels)

    def _filter(self, values: Tensor, taps: Tensor) -> Tensor:
        """Return S A Sᵀ v for (P, C) values and taps (O, C', C)."""
        interpolation = self.lattice.interpolation
        vertices = interpolation.transposed_product(values)
        return interpolation.product(
            convolve(self.lattice, vertices, taps.transpose(1, 2), self.neighbourhood)
        )

    @full_precision
    def message(self, q: Tensor) -> Tensor:
        """Return M q, (P, K)."""
        return self.root * self._filter(self.root * q, self.taps) - self._own(q)

    def _own(self, q: Tensor) -> Tensor:
        """Return what each point would send itself, (P, K)."""
        if self._own_blocks is not None:
            return torch.bmm(self._own_blocks, q[:, :, None])[:, :, 0]
        step = max(1, _STRIP // self.num_labels**2)
        strips = [slice(start, start + step) for start in range(0, self.num_points, step)]
        return torch.cat([torch.bmm(self._blocks(strip), q[strip, :, None]) for strip in strips])[:, :, 0]

    @torch.no_grad()
    @full_precision
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the sums of the norms of the blocks, weighted by R_i / R_j, (P, 1), for both sides.

        For a symmetric matrix N ≥ 0 and any x > 0, ⟨y, N y⟩ ≤ Σ_i (N x)_i / x_i · y_i². N holds the norms of
        the blocks, those of i = j left out, and x = 1 / R, which is close to its first eigenvector.
        """
        norms = block_norms(self.taps)
        everyone = self._filter(norms.new_ones((self.num_points, 1)), norms[:, None, None])
        own = self._own_factors @ norms[self._own_columns, None]
        sums = (self.root.square() * everyone - own).clamp_(min=0)
        return sums, sums


def symmetric_taps(taps: Tensor, dimension: int, neighbourhood: int) -> Tensor:
    """Return the symmetric part of taps w (O, K, K): ½ (w_o + w_{-o}ᵀ)."""
    opposite = opposite_taps(dimension, neighbourhood).to(taps.device)
    return 0.5 * (taps + taps[opposite].transpose(1, 2))
