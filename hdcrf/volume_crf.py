"""The fully connected CRF as a layer for volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hdcrf.crf_layer import Options
from hdcrf.features import check_spacing, volume_features
from hdcrf.grid_crf import GridCRF
from hdcrf.layer_inputs import Bandwidth

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["VolumeCRF"]


class VolumeCRF(GridCRF):
    """Mean field in a CRF that connects every voxel of a volume with every other.

    The pairwise kernel between the voxels i and j, at positions p and with intensities I, is

        w_a exp(-|p_i - p_j|²/2σ_xyz² - |I_i - I_j|²/2σ_I²) + w_s exp(-|p_i - p_j|²/2σ_s²).

    It takes logits (B, K, D, H, W) and a guide (B, c, D, H, W) of any number of channels, such as the
    sequences of an MRI. For volumes larger than memory see `volume_in_blocks`.

    Args:
        num_labels: K, 1 or more.
        appearance_weight: w_a; 0 leaves the kernel out, unless weights are learned.
        appearance_sigma_xyz: σ_xyz in the unit of the spacing, most often millimetres.
        appearance_sigma_intensity: σ_I in the guide's own units: 13 suits a guide from 0 to 255.
        smoothness_weight: w_s; 0 leaves the kernel out, unless weights are learned.
        smoothness_sigma: σ_s in the unit of the spacing.
        spacing: Distance of neighbouring voxels along D, H and W.
        **options: iterations, compatibility, learn, output and so on, as `DenseCRF` has them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> crf = VolumeCRF(3, spacing=(3.0, 1.0, 1.0))
        >>> marginals = crf(torch.randn(1, 3, 8, 32, 32), torch.rand(1, 2, 8, 32, 32) * 255)
    """

    _sizes, _place = "D, H, W", "voxel"
    _axes = ("appearance_sigma_xyz",) * 3
    _guide_bandwidth = "appearance_sigma_intensity"

    appearance_sigma_xyz = Bandwidth("σ_xyz, in the unit of the spacing.")
    appearance_sigma_intensity = Bandwidth("σ_I, in the guide's units.")
    smoothness_sigma = Bandwidth("σ_s, in the unit of the spacing.")

    def __init__(
        self,
        num_labels: int,
        *,
        appearance_weight: float = 10.0,
        appearance_sigma_xyz: float = 20.0,
        appearance_sigma_intensity: float = 13.0,
        smoothness_weight: float = 3.0,
        smoothness_sigma: float = 1.5,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            num_labels,
            {"appearance_weight": appearance_weight, "smoothness_weight": smoothness_weight},
            {
                "appearance_sigma_xyz": appearance_sigma_xyz,
                "appearance_sigma_intensity": appearance_sigma_intensity,
                "smoothness_sigma": smoothness_sigma,
            },
            **options,
        )
        self.spacing = check_spacing(spacing)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "spacing": self.spacing}

    def _features(self, guide: Tensor) -> Tensor:
        return volume_features(
            guide,
            self._sigma("appearance_sigma_xyz", guide),
            self._sigma("appearance_sigma_intensity", guide),
            self.spacing,
        )

    def _smoothness(self, guide: Tensor) -> tuple[tuple[int, ...], Tensor | Sequence[Tensor]]:
        batch, _, *sizes = guide.shape
        sigma = self._sigma("smoothness_sigma", guide)
        return (batch, *sizes), [sigma / step for step in self.spacing]

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return f"{super().extra_repr()}, spacing={self.spacing}"
