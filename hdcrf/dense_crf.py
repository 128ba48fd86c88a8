"""The fully connected CRF of Krähenbühl and Koltun, as a layer for batches of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from hdcrf.features import bilateral_features
from hdcrf.grid_crf import GridCRF
from hdcrf.layer_inputs import Bandwidth

__all__ = ["DenseCRF"]


class DenseCRF(GridCRF):
    """Mean field in a CRF that connects every pixel with every other.

    The pairwise kernel between the pixels i and j, at positions p and with colours I, is

        w_a exp(-|p_i - p_j|²/2σ_xy² - |I_i - I_j|²/2σ_rgb²) + w_s exp(-|p_i - p_j|²/2σ_s²).

    Args:
        num_labels: K, 1 or more.
        iterations: Iterations of mean field, 0 or more.
        appearance_weight: w_a; 0 leaves the kernel out, unless weights are learned.
        appearance_sigma_xy: σ_xy in pixels.
        appearance_sigma_rgb: σ_rgb in the guide's own units: 13 suits a guide from 0 to 255; for one from 0
            to 1 say 13/255.
        smoothness_weight: w_s; 0 leaves the kernel out, unless weights are learned.
        smoothness_sigma: σ_s in pixels.
        compatibility: "potts", "diagonal", "full", or a tensor (K,) or (K, K): see `Compatibility`.
        normalization: Of each kernel: "symmetric", "before", "after" or "none".
        exclude_self: Whether a pixel's message leaves out its own part. The reference code leaves it in.
        method: How the kernel over features is computed: "permutohedral", "voxel", or "exact" (O(N²)).
        order: Accuracy of the fast methods, 1 to 16: rounds of blur.
        halo: Accuracy, 0 to 8: rings of vertices stored around the occupied ones; 0 for "voxel" in more than
            6 dimensions, position included, which crosses gaps by itself.
        learn: Which parameters are trained: any of "weights", "bandwidths" and "compatibility". Bandwidths
            are kept positive; learning them (or a guide that requires gradients) costs an inner product
            for every interpolation weight in each iteration. Not with "voxel" in more than 6 dimensions.
        tolerance: Stop when no marginal of the batch changed by more than this in an iteration.
        output: What `forward` returns: "marginals" or "logits" (for a loss that applies softmax itself).
        backend: "auto", compiled kernels where they can run; "reference", PyTorch, which second derivatives
            need; or "native", the kernels.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> crf = DenseCRF(21, output="logits")
        >>> logits = crf(torch.randn(2, 21, 48, 64), torch.rand(2, 3, 48, 64) * 255)

    Reference: Krähenbühl and Koltun, NeurIPS 2011. We exclude the self term exactly, by the diagonal of
    the operator in use.
    """

    _sizes, _place = "H, W", "pixel"
    _axes = ("appearance_sigma_xy",) * 2
    _guide_bandwidth = "appearance_sigma_rgb"

    appearance_sigma_xy = Bandwidth("σ_xy, in pixels.")
    appearance_sigma_rgb = Bandwidth("σ_rgb, in the guide's units.")
    smoothness_sigma = Bandwidth("σ_s, in pixels.")

    def __init__(
        self,
        num_labels: int,
        *,
        iterations: int = 5,
        appearance_weight: float = 10.0,
        appearance_sigma_xy: float = 80.0,
        appearance_sigma_rgb: float = 13.0,
        smoothness_weight: float = 3.0,
        smoothness_sigma: float = 3.0,
        compatibility: str | Tensor = "potts",
        normalization: str = "symmetric",
        exclude_self: bool = True,
        method: str = "permutohedral",
        order: int = 1,
        halo: int = 0,
        learn: Iterable[str] = ("weights",),
        tolerance: float | None = None,
        output: str = "marginals",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_labels,
            {"appearance_weight": appearance_weight, "smoothness_weight": smoothness_weight},
            {
                "appearance_sigma_xy": appearance_sigma_xy,
                "appearance_sigma_rgb": appearance_sigma_rgb,
                "smoothness_sigma": smoothness_sigma,
            },
            iterations=iterations,
            compatibility=compatibility,
            normalization=normalization,
            exclude_self=exclude_self,
            method=method,
            order=order,
            halo=halo,
            learn=learn,
            tolerance=tolerance,
            output=output,
            backend=backend,
        )

    def _features(self, guide: Tensor) -> Tensor:
        return bilateral_features(
            guide, self._sigma("appearance_sigma_xy", guide), self._sigma("appearance_sigma_rgb", guide)
        )

    def _smoothness(self, guide: Tensor) -> tuple[tuple[int, ...], Tensor | Sequence[Tensor]]:
        batch, _, *sizes = guide.shape
        return (batch, *sizes), self._sigma("smoothness_sigma", guide)
