"""The relaxed energy of a CRF: the energy of a labelling, for labels that may be shares.

A labelling is written as one unit vector for each point, and each unit vector may then be any point of the
simplex: q_i ≥ 0, Σ_λ q_i(λ) = 1. With unary costs ψ_i(λ) and pairwise potentials ψ_ij(λ, μ),

    E(q) = Σ_i Σ_λ ψ_i(λ) q_i(λ) + Σ_{i<j} Σ_{λ,μ} ψ_ij(λ, μ) q_i(λ) q_j(μ) = ⟨ψ, q⟩ + ½ ⟨q, M q⟩,

where M holds ψ_ij as its K × K blocks, is symmetric, and has zero blocks on its diagonal. Its gradient is

    ∂E/∂q_i(λ) = ψ_i(λ) + Σ_{j≠i} Σ_μ ψ_ij(λ, μ) q_j(μ).

The relaxation is tight: some labelling is as good as any q, and `round_labels` finds one.

Reference: Larsson et al., Learning Arbitrary Pairwise Potentials in CRFs for Semantic Segmentation, 2017,
equations 5 to 7 and proposition 2.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from voxel.checks import check_batch_index, check_finite, check_matrix, check_same_kind
from voxel.precision import full_precision

__all__ = ["PairwisePotential", "RelaxedEnergy", "block_norms", "without_means"]


class PairwisePotential(ABC):
    """Pairwise potentials between P points: a symmetric matrix of K × K blocks, those of i = j zero."""

    num_points: int
    num_labels: int
    like: Tensor  # of its dtype, on its device

    @abstractmethod
    def message(self, q: Tensor) -> Tensor:
        """Return M q, Σ_{j≠i} Σ_μ ψ_ij(λ, μ) q_j(μ), for (P, K) values: (P, K). Differentiable."""

    @abstractmethod
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return numbers l, u ≥ 0 with -Σ_i l_i |δ_i|² ≤ ⟨δ, M δ⟩ ≤ Σ_i u_i |δ_i|² if each δ_i sums to zero.

        Each is (P, 1), or (1, 1) if it is the same for all points. Computed without gradient.
        """


class RelaxedEnergy:
    """E(q) = ⟨ψ, q⟩ + ½ ⟨q, M q⟩ for q (P, K).

    Args:
        unary: ψ, (P, K) float32 or float64.
        potentials: Whose sum M is. An empty list leaves the unary costs.
        batch: (P,) integers: the item of each point, where there are several that do not interact. What is
            decided for an item, such as how it is rounded, then does not depend on the others.

    Raises:
        TypeError: If the unary costs are not floating, or a potential is none.
        ValueError: If they are not a finite matrix, or potentials are over other points or labels.
    """

    def __init__(
        self, unary: Tensor, potentials: Sequence[PairwisePotential], batch: Tensor | None = None
    ) -> None:
        check_matrix("unary", unary, "(P, K)")
        check_finite("unary", unary)
        if isinstance(potentials, PairwisePotential):
            raise TypeError("`potentials` must be a list of potentials, got one; write [potential]")
        for potential in potentials:
            if not isinstance(potential, PairwisePotential):
                raise TypeError(f"`potentials` must hold PairwisePotentials, got {type(potential).__name__}")
            expected = (potential.num_points, potential.num_labels)
            if tuple(unary.shape) != expected:
                raise ValueError(
                    f"`unary` must have shape (P, K) = {expected}, as `potentials` have, "
                    f"got {tuple(unary.shape)}"
                )
            check_same_kind("potentials", potential.like, "unary", unary)
        if batch is not None:
            check_batch_index("batch", batch, len(unary), unary)
        self.unary, self.batch = unary, batch
        self.potentials = tuple(potentials)

    def check(self, name: str, q: Tensor) -> None:
        """Raise unless q is finite, has the shape of the unary costs, their dtype and device."""
        check_matrix(name, q, "(P, K)")
        if q.shape != self.unary.shape:
            raise ValueError(
                f"`{name}` must have shape (P, K) = {tuple(self.unary.shape)}, got {tuple(q.shape)}"
            )
        check_same_kind(name, q, "unary", self.unary)
        check_finite(name, q)

    @full_precision
    def message(self, q: Tensor) -> Tensor:
        """Return M q: (P, K)."""
        if q.shape != self.unary.shape:
            raise ValueError(f"`q` must have shape (P, K) = {tuple(self.unary.shape)}, got {tuple(q.shape)}")
        if not self.potentials:
            return torch.zeros_like(q)
        total = self.potentials[0].message(q)
        for potential in self.potentials[1:]:
            total = total + potential.message(q)
        return total

    def gradient(self, q: Tensor) -> Tensor:
        """Return ∂E/∂q = ψ + M q: (P, K). Differentiable in all that M and ψ were made of."""
        return self.unary + self.message(q)

    def value(self, q: Tensor, message: Tensor | None = None) -> Tensor:
        """Return E(q), a float64 scalar; `message` is M q where that is known. Differentiable."""
        message = self.message(q) if message is None else message
        return (q.double() * (self.unary.double() + 0.5 * message.double())).sum()

    def of_labels(self, labels: Tensor) -> Tensor:
        """Return E of a labelling (P,) of integers, a float64 scalar."""
        points, count = self.unary.shape
        check_batch_index("labels", labels, points, self.unary)
        if points and int(labels.max()) >= count:
            raise ValueError(f"`labels` must be below K = {count}, got {int(labels.max())}")
        return self.value(torch.nn.functional.one_hot(labels.long(), count).to(self.unary))

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Numbers l, u ≥ 0 with -Σ_i l_i |δ_i|² ≤ ⟨δ, M δ⟩ ≤ Σ_i u_i |δ_i|² if each δ_i sums to zero.

        Each is (P, 1) or (1, 1). Steps on the simplex sum to zero: a projected gradient step of length
        γ_i ≤ 2 / u_i at each point does not raise the energy.
        """
        with torch.no_grad(), torch.inference_mode(False):
            lower = upper = self.unary.new_zeros((1, 1))
            for potential in self.potentials:
                below, above = potential.bounds()
                lower, upper = lower + below, upper + above
            return lower, upper


def block_norms(blocks: Tensor) -> Tensor:
    """Return how far K × K blocks W (…, K, K) can stretch what sums to zero, ‖C W C‖₂ with C = 1 - 11ᵀ/K."""
    norms: Tensor = torch.linalg.matrix_norm(without_means(blocks, -1, -2), 2)
    return norms


def without_means(blocks: Tensor, first: int, second: int) -> Tensor:
    """Return C W C, blocks without their means along the two dimensions of labels."""
    centred = blocks - blocks.mean(first, keepdim=True)
    return centred - centred.mean(second, keepdim=True)
