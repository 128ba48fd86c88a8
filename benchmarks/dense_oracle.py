"""Mean field on the exact dense matrix, written out: what DenseCRF approximates.

It shares no code with the package: the matrix of all pairs of pixels is held whole (N² numbers), and the
smoothness kernel is not truncated.
"""

from __future__ import annotations

import numpy as np
import torch


class DenseOracle:
    """The CRF of one photo with default parameters and symmetric normalisation."""

    def __init__(self, image: np.ndarray, sigma_xy: float = 80, sigma_rgb: float = 13, sigma: float = 3):
        height, width = image.shape[:2]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        position = torch.stack([x, y], -1).reshape(-1, 2).float()
        colour = torch.from_numpy(image.reshape(-1, 3).astype(np.float32))
        self.appearance = self._normalized(torch.cat([position / sigma_xy, colour / sigma_rgb], 1))
        self.smoothness = self._normalized(position / sigma)

    @staticmethod
    def _normalized(features: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        matrix = distance.square_().mul_(-0.5).exp_()
        root = matrix.sum(1, dtype=torch.float64).rsqrt().float()
        return matrix.mul_(root[:, None]).mul_(root)

    def mean_field(self, probabilities: np.ndarray, iterations: int, exclude_self: bool) -> np.ndarray:
        """Return the (H, W, K) marginals under weights 10 and 3 and Potts compatibility."""
        unary = -torch.from_numpy(probabilities).reshape(-1, probabilities.shape[2]).log()
        marginals = torch.softmax(-unary, 1)
        own = 10 * self.appearance.diagonal() + 3 * self.smoothness.diagonal()
        for _ in range(iterations):
            message = 10 * (self.appearance @ marginals) + 3 * (self.smoothness @ marginals)
            if exclude_self:
                message -= own[:, None] * marginals
            cost = message.sum(1, keepdim=True) - message
            marginals = torch.softmax(-unary - cost, 1)
        return marginals.reshape(probabilities.shape).numpy()
