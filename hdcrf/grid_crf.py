"""CRF layers over grids: the pixels of images and videos, the voxels of volumes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from hdcrf.crf_layer import CRFLayer, reshaped
from hdcrf.features import batch_index
from hdcrf.layer_inputs import check_grid, working_precision
from hdcrf.mean_field import MeanFieldResult
from hdcrf.pairwise import PairwiseKernel, SmoothnessKernel
from voxel.precision import full_precision

__all__ = ["GridCRF"]


class GridCRF(CRFLayer):
    """A layer that refines logits on a grid (B, K, *S), guided by values on the same grid (B, c, *S).

    Its kernels are a lattice over position and guide, `appearance`, and a separable one over the position,
    `smoothness`. What S is, and the lift, its subclasses say.
    """

    _sizes: ClassVar[str]  # the names of the axes S
    _place: ClassVar[str]  # what a point of the grid is called
    _axes: ClassVar[Sequence[str]]  # the bandwidth of each axis, the last axis of S first
    _guide_bandwidth: ClassVar[str]
    smoothness_weight: nn.Parameter

    @abstractmethod
    def _features(self, guide: Tensor) -> Tensor:
        """Lift the points of the guide."""

    @abstractmethod
    def _smoothness(self, guide: Tensor) -> tuple[tuple[int, ...], Tensor | Sequence[Tensor]]:
        """Return the shape and the standard deviations of the smoothness kernel."""

    def forward(self, logits: Tensor, guide: Tensor) -> Tensor:
        """Refine unary logits, guided by values on the same grid.

        Args:
            logits: (B, K, *S) float32 or float64: log-probabilities up to a constant for each point. Half
                precision is computed in float32.
            guide: (B, c, *S) with any number of channels, floating or integers.

        Returns:
            (B, K, *S) marginals, or their logarithms, as `output` says, in the dtype of the logits.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, an entry is not finite, or a sigma is so small
                that the lattice's coordinates overflow.
        """
        return self._run(logits, guide=guide)

    @full_precision
    def infer(
        self,
        logits: Tensor,
        guide: Tensor,
        *,
        track: bool = False,
        return_logits: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> MeanFieldResult:
        """Refine as `forward` does, and return all that mean field knows.

        Args:
            logits: (B, K, *S), as in `forward`.
            guide: (B, c, *S), as in `forward`.
            track: Whether to compute the energy and the objective of each iteration, summed over the batch.
            return_logits: Whether the result has logits, which take as much memory as the marginals.
            progress: Called with the number of iterations done, after each.

        Returns:
            Marginals and logits (B, K, *S), the number of iterations, energy and KL objective.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        given = logits
        logits = working_precision(logits)
        guide = self._checked(logits, guide)
        batch, labels, *sizes = logits.shape
        rows = logits.movedim(1, -1).reshape(-1, labels)
        result = self._mean_field(rows, self._kernels(guide), track, return_logits, progress)
        return reshaped(result, given.dtype, lambda rows: rows.view(batch, *sizes, labels).movedim(-1, 1))

    def _checked(self, logits: Tensor, guide: Tensor) -> Tensor:
        """Validate both inputs and return the guide in the logits' dtype."""
        check_grid(logits, guide, self.num_labels, self._sizes)
        self._warn_of_range("guide", guide, self._guide_bandwidth, "appearance_weight")
        return guide.to(logits.dtype)

    def _kernels(self, guide: Tensor) -> list[PairwiseKernel]:
        kernels: list[PairwiseKernel] = []
        batch, channels, *sizes = guide.shape
        if self._used["appearance_weight"]:
            axes = [*self._axes, *[self._guide_bandwidth] * channels]
            index = batch_index(batch, math.prod(sizes), guide.device)
            features = self._features(guide)
            kernels.append(self._lattice_kernel(features, "appearance_weight", index, axes, self._place))
        if self._used["smoothness_weight"]:
            weight = self.smoothness_weight.to(guide)
            shape, sigma = self._smoothness(guide)
            kernels.append(SmoothnessKernel(shape, sigma, weight, self.normalization, backend=self.backend))
        return kernels
