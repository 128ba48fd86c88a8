"""The matrix of a Potts model: labels share the pairwise terms of pixels."""

from __future__ import annotations

from torch import Tensor

from hdcrf.gaussian.pairwise_terms import PairwiseTerms, SymmetricMatrix

__all__ = ["PottsMatrix"]


class PottsMatrix(SymmetricMatrix):
    """The matrix that couples pixels of different labels by Ψ, and those of like labels not at all.

    A(p, k; q, l) = Ψ(p, q) for k ≠ l, else 0, so that disagreement costs Ψ(p, q) x_p x_q.

    Args:
        shared: Ψ, over P pixels.
        num_labels: L.

    Reference: Chandra 2018, eqs. 2.15, 3.8 and 3.9.
    """

    def __init__(self, shared: PairwiseTerms, num_labels: int) -> None:
        self.shared = shared
        self.num_labels = num_labels
        self.batch_size = shared.batch_size
        self.size = num_labels * shared.size
        self.like = shared.like

    def product(self, vectors: Tensor) -> Tensor:
        """Return A v for (B, R, L·P) vectors: Ψ times each label's part, subtracted from the sum of all.

        One product with Ψ a label, rather than L - 1 (Chandra 2018, eqs. 3.12 and 3.13).
        """
        batch, count, _ = vectors.shape
        parts = self.shared.product(vectors.reshape(batch, count * self.num_labels, self.shared.size))
        parts = parts.reshape(batch, count, self.num_labels, self.shared.size)
        return (parts.sum(2, keepdim=True) - parts).reshape(vectors.shape)

    def margin(self) -> Tensor:
        """Return Δ, (B, L·P) or (B, 1), such that Δ + (L - 1) Ψ and Δ - Ψ are positive semidefinite.

        They are A on vectors that are the same for all labels, and on those that sum to zero over labels.
        """
        margin = (self.num_labels - 1) * self.shared.margin()
        if self.num_labels > 1:  # else no vector but zero sums to zero
            margin = margin.maximum(self.shared.bound())
        return margin if margin.shape[1] == 1 else margin.repeat(1, self.num_labels)
