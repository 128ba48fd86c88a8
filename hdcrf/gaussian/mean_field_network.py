"""Gaussian mean field as layers of a network, each of which brings the scores closer to the solution.

The energy of scores y, K numbers for each pixel, given the unary r, is

    E(y) = Σ_i ‖y_i - r_i‖² + Σ_ij (y_i - y_j)ᵀ W_ij (y_i - y_j),      W_ij = s_ij C,

one pairwise term for each pair of connected pixels. Mean field finds the minimum by setting each pixel to
its best, given the others:

    μ_i ← (I + Σ_j W_ij)⁻¹ (r_i + Σ_j W_ij μ_j).

No two even columns are connected, and no two odd ones. So all even columns are updated at once, then all odd
ones, as one pixel after another would be: neither half can raise the energy. A layer is both.

When is that needed? Updating all pixels at once also converges for this energy, whatever W_ij ⪰ 0 and
whatever the graph: with A = D - N, D its blocks I + Σ_j W_ij, both D - N and D + N are positive definite (the
latter is Σ_i ‖y_i‖² + Σ_ij (y_i + y_j)ᵀ W_ij (y_i + y_j)), so that D⁻¹N has a spectral radius ρ < 1. A layer
of two halves shrinks the error by ρ², at the cost of one update of all pixels, which shrinks it by ρ. What
can diverge without diagonal dominance is updating all numbers y_ik at once, each by itself, or all pixels at
once under a matrix that is not made of such differences, on a graph that is not bipartite. The paper gives
convergence as the reason for two halves; with its update of whole vectors the reason is twice the speed.

Reference: Vemulapalli, Tuzel, Liu and Chellappa, Gaussian Conditional Random Field Network for Semantic
Segmentation, CVPR 2016, eqs. 1 to 5.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hdcrf.gaussian.bipartite_grid import (
    PARTITIONS,
    check_window,
    connections,
    half_pairs,
    halves,
    joined,
    messages,
)
from hdcrf.gaussian.similarity_terms import SimilarityTerms, pixel_similarity
from hdcrf.layer_inputs import working_precision
from voxel.checks import check_choice, check_count, check_finite, check_same_kind
from voxel.precision import full_precision

__all__ = ["GaussianMeanFieldNetwork", "gaussian_mean_field", "gaussian_mean_field_energy"]


class _Update(torch.autograd.Function):
    """x_i = (I + S_i C)⁻¹ (r_i + C m_i), for a C that is diagonal in value but not in its gradient.

    With h_i = (I + S_i C)⁻¹ ∂L/∂x_i: ∂L/∂r_i = h_i, ∂L/∂m_i = C h_i, ∂L/∂S_i = -h_iᵀ C x_i and
    ∂L/∂C = Σ_i h_i (m_i - S_i x_i)ᵀ.
    """

    @staticmethod
    def forward(
        ctx: Any, unary: Tensor, message: Tensor, total: Tensor, matrix: Tensor, diagonal: Tensor
    ) -> Tensor:
        scale = torch.addcmul(torch.ones_like(diagonal), total, diagonal).reciprocal_()
        scores = torch.addcmul(unary, message, diagonal).mul_(scale)
        ctx.save_for_backward(message, total, diagonal, scores)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, None]:
        message, total, diagonal, scores = ctx.saved_tensors
        solved = gradient / torch.addcmul(torch.ones_like(diagonal), total, diagonal)
        weighted = solved * diagonal
        to_total = to_matrix = None
        if ctx.needs_input_grad[2]:
            to_total = (weighted * scores).sum(1, keepdim=True).neg_()
        if ctx.needs_input_grad[3]:
            left = torch.addcmul(message, total, scores, value=-1)
            to_matrix = (solved.flatten(2) @ left.flatten(2).mT).sum(0)
        return solved, weighted, to_total, to_matrix, None


@full_precision
def gaussian_mean_field(
    terms: SimilarityTerms,
    unary: Tensor,
    *,
    layers: int = 5,
    partition: str = "columns",
    start: Tensor | None = None,
) -> Tensor:
    """Return the scores after a number of layers of Gaussian mean field.

    Each layer lowers the energy (`gaussian_mean_field_energy`), unless it is least already; `solve` goes all
    the way.

    Args:
        terms: The pairwise terms s_ij C.
        unary: r (B, K, H, W), of the dtype and device of the terms. In the paper, the probabilities that a
            network's softmax gives.
        layers: T, 0 or more, each an update of the even half and then of the odd half.
        partition: The halves: "columns" or "rows". Since pixels with y + x even are not connected to the
            others, the two differ in the order of the halves for those others alone.
        start: Scores to start from, (B, K, H, W); None starts from the unary, as the paper does. With
            `layers=1` the scores go through one layer more.

    Returns:
        (B, K, H, W) scores.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.

    Differentiable, once, in the unary, the similarities and C, through the layers unrolled. C's eigenvectors
    serve to update all pixels at once. They are taken as a constant basis, which is exact, as the scores do
    not depend on it: so equal eigenvalues, of the identity say, do no harm. Deterministic.

    Memory for gradients: 2·K·T numbers a pixel. Cost: T·(2E + 5) passes over (B, K, H, W), and twice as many
    more for gradients, for the E entries of the similarity a pixel.

    Reference: Vemulapalli et al., CVPR 2016, eq. 2 and figure 3.
    """
    if not isinstance(terms, SimilarityTerms):
        raise TypeError(f"`terms` must be SimilarityTerms, got {type(terms).__name__}")
    terms.flatten(unary)
    check_count("layers", layers, 0)
    check_choice("partition", partition, PARTITIONS)
    scores = unary
    if start is not None:
        terms.flatten(start, "start")
        scores = start
    if layers == 0:
        return scores
    places = half_pairs(terms.connections, *terms.grid, partition)
    weights = halves(terms.similarity, partition)

    def received(half: int, values: Tensor) -> Tensor:
        other = 1 - half
        return messages(weights[half], weights[other], values, (places[half], places[other]))

    matrix = terms.basis.mT @ terms.compatibility @ terms.basis
    diagonal = terms.eigenvalues[:, None, None]
    rotated = halves(_mixed(terms.basis.mT, unary), partition)
    current = list(rotated if start is None else halves(_mixed(terms.basis.mT, start), partition))
    totals = [received(half, torch.ones_like(rotated[1 - half][:, :1])) for half in (0, 1)]
    for _ in range(layers):
        for half in (0, 1):
            message = received(half, current[1 - half])
            current[half] = _Update.apply(  # type: ignore[no-untyped-call]
                rotated[half], message, totals[half], matrix, diagonal
            )
    return _mixed(terms.basis, joined((current[0], current[1]), partition))


def _mixed(matrix: Tensor, scores: Tensor) -> Tensor:
    """Return the (K, K) matrix times each pixel's scores (B, K, H, W)."""
    return (matrix @ scores.flatten(2)).view_as(scores)


@full_precision
def gaussian_mean_field_energy(terms: SimilarityTerms, unary: Tensor, scores: Tensor) -> Tensor:
    """Return E(y) = Σ_i ‖y_i - r_i‖² + Σ_ij s_ij (y_i - y_j)ᵀ C (y_i - y_j) of scores y, (B,).

    Args:
        terms: The pairwise terms s_ij C.
        unary: r (B, K, H, W).
        scores: y (B, K, H, W).

    Differentiable once in all of them.

    Reference: Vemulapalli et al., CVPR 2016, eq. 1.
    """
    if not isinstance(terms, SimilarityTerms):
        raise TypeError(f"`terms` must be SimilarityTerms, got {type(terms).__name__}")
    r, y = terms.flatten(unary).flatten(1), terms.flatten(scores, "scores").flatten(1)
    pairwise = y * terms.product(y[:, None])[:, 0]
    return (y - r).square().sum(1) + pairwise.sum(1)


class GaussianMeanFieldNetwork(nn.Module):
    """The pairwise and the mean field part of the Gaussian CRF network: refines scores, guided by features.

        s_ij = exp(-Σ_m (f_mᵀ z_i - f_mᵀ z_j)²),      W_ij = s_ij C,      C = R Rᵀ,

    with learned filters f_m and a learned lower triangular R, then T layers of `gaussian_mean_field`.

    Args:
        num_labels: K, 1 or more.
        feature_channels: Channels of z, 1 or more.
        num_filters: M; None takes K, as the paper does.
        window: The neighbourhood's width in pixels, odd, 3 to 255: see `pixel_similarity`. The paper's 23 was
            used on an output of an eighth of the image's resolution.
        layers: T, 0 or more.
        partition: "columns" or "rows".

    Attributes:
        filters: f, (M, feature_channels). Drawn so that pixels whose features are independent and of variance
            1 differ by about 1: s is about 1/e.
        factor: R (K, K); what is above the diagonal is not used. At first 1/√n times the identity for n
            neighbours, so that they weigh together at most as much as the unary. The paper does not say how
            it starts.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Before training it whole, the paper trains the similarity alone: `similarity_loss(network.similarity(z),
    labels)`. The whole is trained with `margin_loss`.

    Example:
        >>> network = GaussianMeanFieldNetwork(21, 64, window=7)
        >>> unary = torch.randn(2, 21, 24, 32).softmax(1)
        >>> scores = network(unary, torch.randn(2, 64, 24, 32))

    Reference: Vemulapalli et al., CVPR 2016, section 4.
    """

    def __init__(
        self,
        num_labels: int,
        feature_channels: int,
        *,
        num_filters: int | None = None,
        window: int = 23,
        layers: int = 5,
        partition: str = "columns",
    ) -> None:
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        self.feature_channels = check_count("feature_channels", feature_channels, 1)
        self.num_filters = (
            self.num_labels if num_filters is None else check_count("num_filters", num_filters, 1)
        )
        self.window = check_window(window)
        self.layers = check_count("layers", layers, 0)
        self.partition = check_choice("partition", partition, PARTITIONS)
        spread = 1 / math.sqrt(2 * self.num_filters * self.feature_channels)
        self.filters = nn.Parameter(spread * torch.randn(self.num_filters, self.feature_channels))
        neighbours = 2 * len(connections(self.window))
        self.factor = nn.Parameter(torch.eye(self.num_labels) / math.sqrt(neighbours))

    def compatibility(self) -> Tensor:
        """Return C = R Rᵀ (K, K)."""
        lower = self.factor.tril()
        return lower @ lower.mT

    @full_precision
    def similarity(self, features: Tensor) -> Tensor:
        """Return s (B, E, H, W) of features (B, C, H, W), by `pixel_similarity`; in float32 for halves."""
        features = working_precision(features, "features")
        if features.dim() != 4 or features.shape[1] != self.feature_channels or 0 in features.shape:
            raise ValueError(
                f"`features` must have shape (B, C, H, W) with C = {self.feature_channels} and no size of 0, "
                f"got {tuple(features.shape)}"
            )
        check_finite("features", features)
        filtered = self.filters.to(features.dtype) @ features.flatten(2)
        return pixel_similarity(filtered.view(*filtered.shape[:2], *features.shape[2:]), self.window)

    def terms(self, features: Tensor) -> SimilarityTerms:
        """Return the pairwise terms of features, for `solve` and the energy; in float32 for halves."""
        similarity = self.similarity(features)
        return SimilarityTerms(similarity, self.compatibility().to(similarity.dtype))

    @full_precision
    def forward(self, unary: Tensor, features: Tensor) -> Tensor:
        """Refine the unary's scores.

        Args:
            unary: r (B, K, H, W) float32 or float64: probabilities, in the paper. Half precision is computed
                in float32.
            features: z (B, C, H, W), of the same dtype and device.

        Returns:
            (B, K, H, W) scores, in the dtype of the unary. The label is that of the largest score; they are
            no probabilities.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If an argument has the wrong shape, device or content.
        """
        r = working_precision(unary, "unary")
        z = working_precision(features, "features")
        if r.dim() != 4 or r.shape[1] != self.num_labels or 0 in r.shape:
            raise ValueError(
                f"`unary` must have shape (B, K, H, W) with K = {self.num_labels} and no size of 0, "
                f"got {tuple(r.shape)}"
            )
        check_same_kind("features", z, "unary", r)
        if z.dim() != 4 or (z.shape[0], *z.shape[2:]) != (r.shape[0], *r.shape[2:]):
            batch, _, height, width = r.shape
            raise ValueError(
                f"`features` must have shape (B, C, H, W) = ({batch}, {self.feature_channels}, {height}, "
                f"{width}) to match `unary`, got {tuple(z.shape)}"
            )
        scores = gaussian_mean_field(self.terms(z), r, layers=self.layers, partition=self.partition)
        return scores.to(unary.dtype)

    def extra_repr(self) -> str:
        """Describe the network in `repr`."""
        return (
            f"{self.num_labels}, {self.feature_channels}, num_filters={self.num_filters}, "
            f"window={self.window}, layers={self.layers}, partition={self.partition!r}"
        )
