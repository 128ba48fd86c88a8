"""The fully connected CRF as a layer for videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hdcrf.crf_layer import Options
from hdcrf.features import video_features
from hdcrf.grid_crf import GridCRF
from hdcrf.layer_inputs import Bandwidth

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["VideoCRF"]


class VideoCRF(GridCRF):
    """Mean field in a CRF that connects every pixel of a video with every other, in all of its frames.

    The pairwise kernel between the pixels i and j, at positions p in frames t and with colours I, is

        w_a exp(-|p_i - p_j|²/2σ_xy² - (t_i - t_j)²/2σ_t² - |I_i - I_j|²/2σ_rgb²)
            + w_s [t_i = t_j] exp(-|p_i - p_j|²/2σ_s²).

    It takes logits (B, K, T, H, W) and a guide (B, c, T, H, W). For videos longer than memory see
    `video_in_windows`.

    Args:
        num_labels: K, 1 or more.
        appearance_weight: w_a; 0 leaves the kernel out, unless weights are learned.
        appearance_sigma_xy: σ_xy in pixels.
        appearance_sigma_t: σ_t in frames.
        appearance_sigma_rgb: σ_rgb in the guide's own units: 13 suits a guide from 0 to 255.
        smoothness_weight: w_s; 0 leaves the kernel out, unless weights are learned.
        smoothness_sigma: σ_s in pixels.
        **options: iterations, compatibility, learn, output and so on, as `DenseCRF` has them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> crf = VideoCRF(5, appearance_sigma_t=3.0)
        >>> marginals = crf(torch.randn(1, 5, 8, 48, 64), torch.rand(1, 3, 8, 48, 64) * 255)
    """

    _sizes, _place = "T, H, W", "pixel"
    _axes = ("appearance_sigma_xy", "appearance_sigma_xy", "appearance_sigma_t")
    _guide_bandwidth = "appearance_sigma_rgb"

    appearance_sigma_xy = Bandwidth("σ_xy, in pixels.")
    appearance_sigma_t = Bandwidth("σ_t, in frames.")
    appearance_sigma_rgb = Bandwidth("σ_rgb, in the guide's units.")
    smoothness_sigma = Bandwidth("σ_s, in pixels.")

    def __init__(
        self,
        num_labels: int,
        *,
        appearance_weight: float = 10.0,
        appearance_sigma_xy: float = 80.0,
        appearance_sigma_t: float = 3.0,
        appearance_sigma_rgb: float = 13.0,
        smoothness_weight: float = 3.0,
        smoothness_sigma: float = 3.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            num_labels,
            {"appearance_weight": appearance_weight, "smoothness_weight": smoothness_weight},
            {
                "appearance_sigma_xy": appearance_sigma_xy,
                "appearance_sigma_t": appearance_sigma_t,
                "appearance_sigma_rgb": appearance_sigma_rgb,
                "smoothness_sigma": smoothness_sigma,
            },
            **options,
        )

    def _features(self, guide: Tensor) -> Tensor:
        return video_features(
            guide,
            self._sigma("appearance_sigma_xy", guide),
            self._sigma("appearance_sigma_t", guide),
            self._sigma("appearance_sigma_rgb", guide),
        )

    def _smoothness(self, guide: Tensor) -> tuple[tuple[int, ...], Tensor | Sequence[Tensor]]:
        batch, _, frames, *sizes = guide.shape
        return (batch * frames, *sizes), self._sigma("smoothness_sigma", guide)
