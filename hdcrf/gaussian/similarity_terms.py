"""Pairwise terms s_ij (y_i - y_j)ᵀ C (y_i - y_j) between pixels that look alike."""

from __future__ import annotations

import torch
from torch import Tensor

from hdcrf.gaussian.bipartite_grid import (
    check_window,
    connections,
    connections_of,
    half_pairs,
    halves,
    joined,
    messages,
    similarity_of,
)
from hdcrf.gaussian.conjugate_gradient import NotPositiveDefiniteError, Product
from hdcrf.gaussian.pairwise_terms import PairwiseTerms
from voxel.checks import check_finite, check_floating, check_matrix, check_same_kind
from voxel.precision import full_precision

__all__ = ["SimilarityTerms", "pixel_similarity"]


@full_precision
def pixel_similarity(features: Tensor, window: int = 23) -> Tensor:
    """Return the similarity s_ij = exp(-‖z_i - z_j‖²) of every two connected pixels.

    A pixel is connected to every other neighbour in the window along both rows and columns, those at offsets
    (dy, dx) with dy and dx odd: 16 for a window of 7, 144 for 23. Even and odd columns are then a
    bipartition, and so are even and odd rows. It also follows that pixels with y + x even are never
    connected to those with y + x odd, not even through others.

    Args:
        features: z (B, M, H, W) float32 or float64, after the filters f_m where there are any.
        window: Its width in pixels, odd, 3 to 255.

    Returns:
        (B, E, H, W): for each of the E offsets with dy > 0 (in the order of dy, then dx), the similarity of
        the pixel and the one at that offset; 0 where that lies outside. E is half the number of neighbours.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape or content.

    Differentiable once. Deterministic. Memory: E numbers a pixel, 8 for a window of 7, 72 for 23. Cost: E
    passes over the features.

    Reference: Vemulapalli et al., CVPR 2016, eqs. 4 and 5, figure 2.
    """
    check_floating("features", features)
    if features.dim() != 4 or 0 in features.shape:
        raise ValueError(
            f"`features` must have shape (B, M, H, W) with no size of 0, got {tuple(features.shape)}"
        )
    check_window(window)
    check_finite("features", features)
    return similarity_of(features, connections(window))


class SimilarityTerms(PairwiseTerms):
    """Terms s_ij (y_i - y_j)ᵀ C (y_i - y_j) between connected pixels, one for each pair: W_ij = s_ij C.

    The matrix is A = L ⊗ C, with the graph's Laplacian L = diag(S) - [s_ij] and S_i = Σ_j s_ij. With the
    unary r and `regularization=1`, as by default, `solve` finds the y that makes this least:

        E(y) = Σ_i ‖y_i - r_i‖² + Σ_ij s_ij (y_i - y_j)ᵀ C (y_i - y_j),

    and `energy` is ½ (E - ‖r‖²); `gaussian_mean_field_energy` is E. A is positive semidefinite, so that the
    system is positive definite whatever s ≥ 0 and C ⪰ 0.

    Args:
        similarity: s (B, E, H, W), 0 or more, as `pixel_similarity` returns it. Entries whose second pixel
            lies outside the image are not read.
        compatibility: C (K, K), symmetric and positive semidefinite up to rounding; R Rᵀ always is.

    Memory: that of s, and once more while it is used. Cost of a product: 2 E + K multiplications a score.

    Reference: Vemulapalli et al., CVPR 2016, eqs. 1 and 3.
    """

    num_labels: int
    grid: tuple[int, int]

    def __init__(self, similarity: Tensor, compatibility: Tensor) -> None:
        check_floating("similarity", similarity)
        if similarity.dim() != 4 or 0 in similarity.shape:
            raise ValueError(
                f"`similarity` must have shape (B, E, H, W) with no size of 0, got {tuple(similarity.shape)}"
            )
        self.connections = connections_of(similarity)
        check_finite("similarity", similarity)
        least = float(similarity.detach().min())
        if least < 0:
            raise ValueError(f"`similarity` must be 0 or greater, got {least:.4g}")
        self.eigenvalues, self.basis = _checked_compatibility(compatibility, similarity)
        self.like = similarity
        self.batch_size = similarity.shape[0]
        self.num_labels = compatibility.shape[0]
        self.grid = (similarity.shape[2], similarity.shape[3])
        self.num_pixels = self.grid[0] * self.grid[1]
        self.similarity = similarity
        self.compatibility = compatibility

    def product(self, vectors: Tensor) -> Tensor:
        """Return (L ⊗ C) v for (B, R, K·P) vectors."""
        return self._by(_Laplacian(self), vectors)

    def prepared(self) -> Product:
        """Return the product without gradients; the similarities are split into halves once."""
        with torch.no_grad():
            laplacian = _Laplacian(self)
        return lambda vectors: self._by(laplacian, vectors)

    def _by(self, laplacian: _Laplacian, vectors: Tensor) -> Tensor:
        batch, count, _ = vectors.shape
        images = vectors.reshape(batch, count * self.num_labels, *self.grid)
        differences = laplacian.product(images).reshape(batch, count, self.num_labels, self.num_pixels)
        return (self.compatibility @ differences).reshape(vectors.shape)

    def diagonal(self) -> Tensor:
        """Return S_i C_kk, (B, K·P)."""
        total = _Laplacian(self).diagonal().flatten(2)  # (B, 1, P)
        return (self.compatibility.diagonal()[:, None] * total).flatten(1)

    def margin(self) -> Tensor:
        """Return zeros (B, 1): L ⊗ C is positive semidefinite."""
        return self.like.new_zeros((self.batch_size, 1))

    def bound(self) -> Tensor:
        """Return 2 max_i S_i times the largest eigenvalue of C, (B, 1): none of L ⊗ C is above it."""
        largest = _Laplacian(self).diagonal().detach().flatten(1).amax(1, keepdim=True)
        return 2 * self.eigenvalues[-1] * largest


class _Laplacian:
    """L = diag(S) - [s_ij], over the columns' halves."""

    def __init__(self, terms: SimilarityTerms) -> None:
        self.places = half_pairs(terms.connections, *terms.grid, "columns")
        self.weights = halves(terms.similarity, "columns")
        height = terms.grid[0]
        ones = [terms.like.new_ones((terms.batch_size, 1, height, part.shape[3])) for part in self.weights]
        self.totals = (self._messages(0, ones[1]), self._messages(1, ones[0]))

    def _messages(self, half: int, values: Tensor) -> Tensor:
        other = 1 - half
        return messages(
            self.weights[half], self.weights[other], values, (self.places[half], self.places[other])
        )

    def product(self, images: Tensor) -> Tensor:
        """Return L v for each channel of (B, C, H, W)."""
        even, odd = halves(images, "columns")
        return joined(
            (self.totals[0] * even - self._messages(0, odd), self.totals[1] * odd - self._messages(1, even)),
            "columns",
        )

    def diagonal(self) -> Tensor:
        """Return S (B, 1, H, W)."""
        return joined(self.totals, "columns")


def _checked_compatibility(compatibility: object, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of C, as constants, or raise."""
    matrix = check_matrix("compatibility", compatibility, "(K, K)")
    if matrix.shape[0] != matrix.shape[1] or matrix.numel() == 0:
        raise ValueError(
            f"`compatibility` must have shape (K, K) with K of at least 1, got {tuple(matrix.shape)}"
        )
    check_same_kind("compatibility", matrix, "similarity", like)
    check_finite("compatibility", matrix)
    matrix = matrix.detach()
    allowed = 1e3 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max())  # rounding, of R Rᵀ say
    asymmetry = float((matrix - matrix.mT).abs().max())
    if asymmetry > allowed:
        raise ValueError(
            f"`compatibility` must be symmetric, got entries that differ by {asymmetry:.4g} from their "
            "mirror image; use (C + Cᵀ) / 2, or learn R and use R Rᵀ"
        )
    eigenvalues, basis = torch.linalg.eigh(matrix)
    least = float(eigenvalues[0])
    if least < -allowed * matrix.shape[0]:
        raise NotPositiveDefiniteError(
            f"`compatibility` must be positive semidefinite, got an eigenvalue of {least:.4g}; learn R and "
            "use R Rᵀ, which always is"
        )
    return eigenvalues.clamp_(min=0), basis
