"""Mean field on the exact dense matrix, written out: what the CRF layers approximate.

It shares no code with the package: the matrix of all pairs of points is held whole (N² numbers), and the
smoothness kernel is not truncated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class DenseOracle:
    """A CRF with symmetric normalisation and Potts compatibility.

    `kernels` are pairs of a weight and the features (N, d) of a Gaussian.
    """

    def __init__(self, kernels: Sequence[tuple[float, torch.Tensor]]):
        self.kernels = [(weight, self._normalized(features)) for weight, features in kernels]

    @classmethod
    def of_photo(
        cls, image: np.ndarray, sigma_xy: float = 80, sigma_rgb: float = 13, sigma: float = 3
    ) -> DenseOracle:
        """Return the CRF of a photo (H, W, 3) with the default weights."""
        height, width = image.shape[:2]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        position = torch.stack([x, y], -1).reshape(-1, 2).float()
        colour = torch.from_numpy(image.reshape(-1, 3).astype(np.float32))
        appearance = torch.cat([position / sigma_xy, colour / sigma_rgb], 1)
        return cls([(10, appearance), (3, position / sigma)])

    @staticmethod
    def _normalized(features: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        matrix = distance.square_().mul_(-0.5).exp_()
        root = matrix.sum(1, dtype=torch.float64).rsqrt().float()
        return matrix.mul_(root[:, None]).mul_(root)

    def mean_field(self, probabilities: np.ndarray, iterations: int, exclude_self: bool) -> np.ndarray:
        """Return the marginals, of the probabilities' shape (..., K)."""
        unary = -torch.from_numpy(probabilities).reshape(-1, probabilities.shape[-1]).log()
        marginals = torch.softmax(-unary, 1)
        own = sum(weight * matrix.diagonal() for weight, matrix in self.kernels)
        for _ in range(iterations):
            message = sum(weight * (matrix @ marginals) for weight, matrix in self.kernels)
            if exclude_self:
                message -= own[:, None] * marginals
            cost = message.sum(1, keepdim=True) - message
            marginals = torch.softmax(-unary - cost, 1)
        return marginals.reshape(probabilities.shape).numpy()
