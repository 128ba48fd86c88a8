"""Gaussian CRFs as heads of a network: features become pairwise terms, and the linear system is solved."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from hdcrf.gaussian.conjugate_gradient import Solution, check_solver_options
from hdcrf.gaussian.grid_terms import OFFSETS, GridTerms
from hdcrf.gaussian.inference import METHODS, solve
from hdcrf.gaussian.low_rank_terms import LowRankTerms
from hdcrf.gaussian.pairwise_terms import PairwiseTerms
from hdcrf.gaussian.video_terms import NEIGHBOURHOODS, VideoTerms, least_neighbour_eigenvalue
from hdcrf.layer_inputs import working_precision
from voxel.checks import (
    check_choice,
    check_count,
    check_finite,
    check_flag,
    check_number,
    check_positive,
    check_tensor,
)
from voxel.precision import full_precision

__all__ = ["DenseGaussianCRF", "GaussianCRF", "SparseGaussianCRF", "VideoGaussianCRF"]

_MOST = 0.99
"""The strength stays below this: at 1 a system would be singular."""


class GaussianCRF(nn.Module, ABC):
    """A head that returns the scores x of least energy ½ xᵀ A x + λ/2 ‖x - b‖², for unary scores b.

    That is (A + λI) x = λb: with b multiplied by λ, unlike in Chandra 2018, the scores are the unary ones
    where A is 0, whatever λ is. A follows from features by a 1 x 1 convolution; the subclasses say how.

    Args:
        num_labels: L.
        feature_channels: C, of the features.
        potts: Whether labels share the pairwise terms.
        regularization: λ.
        method, precondition, tolerance, max_iterations, on_failure: See `hdcrf.gaussian.solve`.
    """

    _guarantee = False  # whether `solve` must add what makes the system positive definite
    _dimension = 2  # of the grid

    def __init__(
        self,
        num_labels: int,
        feature_channels: int,
        *,
        potts: bool = True,
        regularization: float = 1.0,
        method: str = "auto",
        precondition: bool = False,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        on_failure: str = "raise",
    ) -> None:
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        self.feature_channels = check_count("feature_channels", feature_channels, 1)
        self.potts = check_flag("potts", potts)
        self.regularization = check_positive("regularization", regularization)
        self.method = check_choice("method", method, METHODS)
        self.precondition = check_flag("precondition", precondition)
        check_solver_options(torch.float32, tolerance, max_iterations, on_failure)
        self.tolerance, self.max_iterations, self.on_failure = tolerance, max_iterations, on_failure

    @abstractmethod
    def terms(self, features: Tensor) -> PairwiseTerms:
        """Return the pairwise terms of features (B, C, *S)."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how long it iterates depends on the values
    def forward(self, unary: Tensor, features: Tensor) -> Tensor:
        """Return the scores x.

        Args:
            unary: b, (B, L, *S) float32 or float64, such as a network's logits. Half precision is computed in
                float32.
            features: (B, C, *S), at the unary's resolution. Both may be coarser than the image: the thesis
                works at an eighth, and interpolates the scores.

        Returns:
            (B, L, *S), in the dtype of the unary.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If an argument has the wrong shape, device or content.
            ConvergenceError: If `max_iterations` did not suffice.

        Differentiable, once, in closed form, in both and in the parameters. A compiled model calls it as it
        is.
        """
        scores: Tensor = self.infer(unary, features).x
        return scores

    @full_precision
    def infer(self, unary: Tensor, features: Tensor) -> Solution:
        """Return what `forward` does, with the iterations, residual and convergence of each item."""
        working = working_precision(unary, "unary")
        self._check_inputs(working, features)
        solution = solve(
            self.terms(features.to(working.dtype)),
            working * self.regularization,
            regularization=self.regularization,
            guarantee=self._guarantee,
            method=self.method,
            precondition=self.precondition,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            on_failure=self.on_failure,
        )
        x = solution.x.to(unary.dtype)
        return Solution(x, solution.iterations, solution.residual, solution.converged)

    def _check_inputs(self, unary: Tensor, features: object) -> None:
        axes = "T, H, W" if self._dimension == 3 else "H, W"
        wrong = unary.dim() != 2 + self._dimension or unary.shape[1:2] != (self.num_labels,)
        if wrong or 0 in unary.shape:
            raise ValueError(
                f"`unary` must have shape (B, {self.num_labels}, {axes}) with no size of 0, "
                f"got {tuple(unary.shape)}"
            )
        tensor = check_tensor("features", features)
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"`features` must be floating, got {tensor.dtype}; convert it with .float()")
        wanted = (*unary.shape[:1], self.feature_channels, *unary.shape[2:])
        if tensor.shape != wanted:
            raise ValueError(
                f"`features` must have shape {wanted}, {self.feature_channels} channels on the grid of "
                f"`unary`, got {tuple(tensor.shape)}; interpolate either to the other's size"
            )
        if tensor.device != unary.device:
            raise ValueError(
                f"`features` must be on the device of `unary`, {unary.device}, got {tensor.device}"
            )
        check_finite("features", tensor)

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return (
            f"{self.num_labels}, {self.feature_channels}, potts={self.potts}, "
            f"regularization={self.regularization:.3g}"
        )


class SparseGaussianCRF(GaussianCRF):
    """A Gaussian CRF in which each pixel is coupled with 4, 8 or 12 neighbours.

    What makes the system positive definite is added to its diagonal (`guarantee` of `solve`). In a Potts
    model of many labels that is much, and leaves little to the terms: so labels have terms of their own by
    default.

    Args:
        num_labels: L.
        feature_channels: C.
        connectivity: 4, 8 or 12.
        potts: Whether labels share the terms.
        **options: See `GaussianCRF`.

    Reference: Chandra and Kokkinos, ECCV 2016; Chandra 2018, chapter 2.
    """

    _guarantee = True

    def __init__(
        self,
        num_labels: int,
        feature_channels: int,
        *,
        connectivity: int = 4,
        potts: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_labels, feature_channels, potts=potts, **options)
        if check_count("connectivity", connectivity, 4) not in OFFSETS:
            raise ValueError(
                f"`connectivity` must be one of {', '.join(map(str, OFFSETS))}, got {connectivity!r}"
            )
        self.connectivity = connectivity
        pairs = 1 if potts else num_labels**2
        self.edges = nn.Conv2d(feature_channels, len(OFFSETS[connectivity]) * pairs, 1)
        # What has learned nothing should hardly matter.
        _make_small(self.edges, 0.01 / math.sqrt(feature_channels))

    def terms(self, features: Tensor) -> GridTerms:
        """Return the terms of features (B, C, H, W)."""
        weights = _pointwise(self.edges, features)
        if not self.potts:
            weights = weights.reshape(
                weights.shape[0], -1, self.num_labels, self.num_labels, *features.shape[2:]
            )
        return GridTerms(weights, connectivity=self.connectivity)


class _EmbeddingCRF(GaussianCRF):
    """What Gaussian CRFs have in common whose terms are inner products of embeddings."""

    def __init__(
        self,
        num_labels: int,
        feature_channels: int,
        *,
        embedding: int = 128,
        strength: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(num_labels, feature_channels, **options)
        self.embedding = check_count("embedding", embedding, 1)
        if not 0 < check_number("strength", strength) < _MOST:
            raise ValueError(f"`strength` must lie between 0 and {_MOST}, got {strength}")
        if self.potts:
            self.logit_strength = nn.Parameter(torch.tensor(math.log(strength / (_MOST - strength))))
        else:
            self.register_parameter("logit_strength", None)
        self.embed = self._embedding_layer()

    @property
    def strength(self) -> Tensor | None:
        """How much of λ the largest eigenvalue of shared terms is; None where labels have their own."""
        return None if self.logit_strength is None else _MOST * self.logit_strength.sigmoid()

    def _embedding_layer(self) -> nn.Conv2d:
        labels = 1 if self.potts else self.num_labels
        layer = nn.Conv2d(self.feature_channels, self.embedding * labels, 1)
        if not self.potts:  # small, but not zero, from where inner products could not be learned
            _make_small(layer, 0.1 / math.sqrt(self.feature_channels * self.embedding))
        return layer

    def _embed(self, layer: nn.Conv2d, features: Tensor) -> Tensor:
        """Return the embeddings (B, D, [L,] *S) of features (B, C, *S)."""
        result = _pointwise(layer, features)
        if self.potts:
            return result.softmax(1)
        return result.reshape(result.shape[0], self.embedding, self.num_labels, *features.shape[2:])


class DenseGaussianCRF(_EmbeddingCRF):
    """A Gaussian CRF that couples all pixels of an image, by inner products of embeddings.

    Where labels have embeddings e of their own, the terms are ⟨e_p(l), e_q(m)⟩ / P over P pixels, so that how
    much they matter does not depend on the size of the image. Where labels share them, embeddings ψ are
    probabilities (a softmax) with which a pixel belongs to each of D parts, and the terms s λ ⟨ψ_p, ψ_q⟩ /
    √(d_p d_q) with the degree d_p = Σ_q ⟨ψ_p, ψ_q⟩: their largest eigenvalue is the fraction s, the strength,
    of λ. So the system is positive definite, in either case, whatever the features are.

    Args:
        num_labels: L.
        feature_channels: C.
        embedding: D, the dimensions of the embedding of a pixel, or of a label at a pixel.
        strength: s at the start, above 0 and below 0.99, where labels share the terms; learned.
        **options: See `GaussianCRF`.

    Reference: Chandra, Usunier and Kokkinos, ICCV 2017; Chandra 2018, chapter 3. The softmax and the
    degrees are ours: in the thesis shared embeddings are free, and λ is found by trying.
    """

    def embeddings(self, features: Tensor) -> Tensor:
        """Return the embeddings of features (B, C, H, W): (B, D, H, W), or (B, D, L, H, W) if not `potts`."""
        return self._embed(self.embed, features)

    def terms(self, features: Tensor) -> LowRankTerms:
        """Return the terms of features (B, C, H, W)."""
        embeddings = self.embeddings(features)
        if self.strength is None:
            return LowRankTerms(embeddings / math.sqrt(features.shape[-2:].numel()))
        degree = torch.einsum("bdhw,bd->bhw", embeddings, embeddings.sum((2, 3)))
        scale = (self.regularization * self.strength.to(degree) / degree).sqrt()
        return LowRankTerms(embeddings * scale[:, None])


class VideoGaussianCRF(_EmbeddingCRF):
    """A Gaussian CRF that couples all pixels of each frame, and those of frames that are connected.

    As `DenseGaussianCRF`, with spatial embeddings for pixels of one frame, and temporal ones for pixels of
    frames that are connected. Within a frame the terms have the temporal embeddings too, as often as makes
    the system positive definite: once for the neighbourhood "full", less than twice for "2".

    Args:
        num_labels: L.
        feature_channels: C.
        embedding: D, the dimensions of each of the two embeddings.
        neighbourhood: Which frames are connected: "2", "4", "6ms" or "full"; see `VideoTerms`.
        strength: s at the start, above 0 and below 0.99, where labels share the terms; learned.
        **options: See `GaussianCRF`.

    Takes unary scores (B, L, T, H, W) and features (B, C, T, H, W). For a video of any length, see
    `video_in_contexts`.

    Reference: Chandra, Couprie and Kokkinos, CVPR 2018; Chandra 2018, chapter 4.
    """

    _dimension = 3

    def __init__(
        self,
        num_labels: int,
        feature_channels: int,
        *,
        embedding: int = 128,
        neighbourhood: str = "full",
        strength: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(num_labels, feature_channels, embedding=embedding, strength=strength, **options)
        self.neighbourhood = check_choice("neighbourhood", neighbourhood, tuple(NEIGHBOURHOODS))
        self.embed_time = self._embedding_layer()

    def embeddings(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spatial and the temporal embeddings of features (B, C, T, H, W).

        Each is (B, D, T, H, W), or (B, D, L, T, H, W) if not `potts`.
        """
        return self._embed(self.embed, features), self._embed(self.embed_time, features)

    def terms(self, features: Tensor) -> VideoTerms:
        """Return the terms of features (B, C, T, H, W)."""
        spatial, temporal = self.embeddings(features)
        least = least_neighbour_eigenvalue(features.shape[2], self.neighbourhood)
        spatial = torch.cat([spatial, math.sqrt(-least) * temporal], 1)
        if self.strength is None:
            root = math.sqrt(features.shape[-2:].numel())
            return VideoTerms(spatial / root, temporal / root, neighbourhood=self.neighbourhood)
        raw = VideoTerms(spatial, temporal, neighbourhood=self.neighbourhood)
        ones = torch.ones_like(spatial[:, 0]).flatten(1)[:, None]
        degree = raw.product(ones).reshape(spatial[:, 0].shape)
        scale = (self.regularization * self.strength.to(degree) / degree).sqrt()[:, None]
        return VideoTerms(spatial * scale, temporal * scale, neighbourhood=self.neighbourhood)


def _make_small(layer: nn.Conv2d, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _pointwise(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution to features (B, C, *S), in their dtype."""
    weight, bias = (parameter.to(features) for parameter in layer.parameters())
    products = torch.einsum("dc,bcp->bdp", weight.flatten(1), features.flatten(2)) + bias[:, None]
    return products.reshape(features.shape[0], -1, *features.shape[2:])
