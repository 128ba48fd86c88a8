"""The fully connected CRF of Krähenbühl and Koltun, as a layer for batches of images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hdcrf.compatibility import Compatibility
from hdcrf.features import POSITION_AXES, batch_index, bilateral_features
from hdcrf.gaussian_filter import METHODS, build_filter
from hdcrf.mean_field import MeanFieldResult, mean_field
from hdcrf.pairwise import PairwiseKernel, SmoothnessKernel, pairwise_kernel
from voxel import CoordinateRangeError, FilterOperator
from voxel.backend import BACKENDS
from voxel.blur import MOST_ROUNDS
from voxel.checks import (
    MOST_RINGS,
    check_choice,
    check_count,
    check_finite,
    check_flag,
    check_floating,
    check_number,
    check_positive,
    check_tensor,
)
from voxel.filter_operator import NORMALIZATIONS
from voxel.precision import full_precision

__all__ = ["DenseCRF"]

_FLOAT32 = torch.finfo(torch.float32)
_LEARNABLE = ("weights", "bandwidths", "compatibility")


class DenseCRF(nn.Module):
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
        method: How the appearance kernel is computed: "permutohedral", "voxel", or "exact" (O(N²)).
        order: Accuracy of the fast methods, 1 to 16: rounds of blur.
        halo: Accuracy, 0 to 8: rings of vertices stored around the occupied ones; 0 for "voxel" with more
            than 4 channels, which crosses gaps by itself.
        learn: Which parameters are trained: any of "weights", "bandwidths" and "compatibility". Bandwidths
            are kept positive; learning them (or a guide that requires gradients) costs an inner product
            for every interpolation weight in each iteration.
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
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        self.iterations = check_count("iterations", iterations, 0)
        self.normalization = check_choice("normalization", normalization, NORMALIZATIONS)
        self.method = check_choice("method", method, METHODS)
        self.order = check_count("order", order, 1, MOST_ROUNDS)
        self.halo = check_count("halo", halo, 0, MOST_RINGS)
        self.output = check_choice("output", output, ("marginals", "logits"))
        self.backend = check_choice("backend", backend, BACKENDS)
        self.exclude_self = check_flag("exclude_self", exclude_self)
        self.tolerance = None if tolerance is None else check_positive("tolerance", tolerance)
        if not isinstance(learn, Iterable):
            raise TypeError(
                f"`learn` must be names among {', '.join(_LEARNABLE)}, got {type(learn).__name__}"
            )
        learned = [learn] if isinstance(learn, str) else list(learn)
        for name in learned:
            check_choice("learn", name, _LEARNABLE)
        learn_weights, learn_bandwidths = "weights" in learned, "bandwidths" in learned

        self._use_appearance = learn_weights or appearance_weight != 0
        self._use_smoothness = learn_weights or smoothness_weight != 0
        self.appearance_weight = _parameter("appearance_weight", appearance_weight, learn_weights)
        self.smoothness_weight = _parameter("smoothness_weight", smoothness_weight, learn_weights)
        self.log_appearance_sigma_xy = _log_parameter(
            "appearance_sigma_xy", appearance_sigma_xy, learn_bandwidths
        )
        self.log_appearance_sigma_rgb = _log_parameter(
            "appearance_sigma_rgb", appearance_sigma_rgb, learn_bandwidths
        )
        self.log_smoothness_sigma = _log_parameter("smoothness_sigma", smoothness_sigma, learn_bandwidths)
        self.compatibility = Compatibility(num_labels, compatibility, learn="compatibility" in learned)

    @property
    def appearance_sigma_xy(self) -> Tensor:
        """σ_xy, in pixels."""
        return self.log_appearance_sigma_xy.exp()

    @property
    def appearance_sigma_rgb(self) -> Tensor:
        """σ_rgb, in the guide's units."""
        return self.log_appearance_sigma_rgb.exp()

    @property
    def smoothness_sigma(self) -> Tensor:
        """σ_s, in pixels."""
        return self.log_smoothness_sigma.exp()

    def forward(self, logits: Tensor, guide: Tensor) -> Tensor:
        """Refine unary logits, guided by images.

        Args:
            logits: (B, K, H, W) float32 or float64: log-probabilities up to a constant for each pixel.
            guide: (B, c, H, W) images of any number of channels, floating or integers.

        Returns:
            (B, K, H, W) marginals, or their logarithms, as `output` says.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, an entry is not finite, or a sigma is so small
                that the lattice's coordinates overflow.
        """
        if torch.compiler.is_compiling():
            compiled: Tensor = torch.ops.hdcrf.dense_crf(
                logits, guide, self._ordered_parameters(), self._settings()
            )
            return compiled
        result = self.infer(logits, guide, return_logits=self.output == "logits")
        return result.marginals if result.logits is None else result.logits

    def _ordered_parameters(self) -> list[Tensor]:
        """Return the parameters in the order of the operation in hdcrf.compiled."""
        parameters: list[Tensor] = [
            self.appearance_weight,
            self.smoothness_weight,
            self.log_appearance_sigma_xy,
            self.log_appearance_sigma_rgb,
            self.log_smoothness_sigma,
        ]
        values = self.compatibility.values
        return parameters if values is None else [*parameters, values]

    def _settings(self) -> str:
        """Return the constructor's other arguments, written as a dict, for that operation."""
        settings = {
            "num_labels": self.num_labels,
            "iterations": self.iterations,
            # A kernel whose weight is 0 from the start is left out, unless the weight is learned.
            "appearance_weight": int(self._use_appearance),
            "smoothness_weight": int(self._use_smoothness),
            "normalization": self.normalization,
            "exclude_self": self.exclude_self,
            "method": self.method,
            "order": self.order,
            "halo": self.halo,
            "tolerance": self.tolerance,
            "output": self.output,
            "backend": self.backend,
        }
        return str(settings)

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
            logits: (B, K, H, W), as in `forward`.
            guide: (B, c, H, W), as in `forward`.
            track: Whether to compute the energy and the objective of each iteration, summed over the batch.
            return_logits: Whether the result has logits, which take as much memory as the marginals.
            progress: Called with the number of iterations done, after each.

        Returns:
            Marginals and logits (B, K, H, W), the number of iterations, energy and KL objective.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        guide = self._checked(logits, guide)
        check_flag("track", track)
        check_flag("return_logits", return_logits)
        if progress is not None and not callable(progress):
            raise TypeError(
                f"`progress` must be a function of the iterations done, or None, "
                f"got {type(progress).__name__}"
            )
        batch, labels, height, width = logits.shape
        if logits.numel() == 0:
            raise ValueError(f"`logits` must not be empty, got shape {tuple(logits.shape)}")
        rows = logits.permute(0, 2, 3, 1).reshape(-1, labels)
        result = mean_field(
            rows,
            self._kernels(guide),
            self.compatibility,
            iterations=self.iterations,
            exclude_self=self.exclude_self,
            tolerance=self.tolerance,
            track=track,
            return_logits=return_logits,
            progress=progress,
        )

        def images(rows: Tensor) -> Tensor:
            return rows.view(batch, height, width, labels).permute(0, 3, 1, 2)

        updated = None if result.logits is None else images(result.logits)
        return replace(result, marginals=images(result.marginals), logits=updated)

    def _checked(self, logits: Tensor, guide: Tensor) -> Tensor:
        """Validate both inputs and return the guide in the logits' dtype."""
        check_floating("logits", logits)
        check_tensor("guide", guide)
        if logits.dim() != 4 or logits.shape[1] != self.num_labels:
            raise ValueError(
                f"`logits` must have shape (B, K, H, W) with K = {self.num_labels}, got {tuple(logits.shape)}"
            )
        if guide.dim() != 4 or guide.shape[0] != logits.shape[0] or guide.shape[2:] != logits.shape[2:]:
            batch, _, height, width = logits.shape
            raise ValueError(
                f"`guide` must have shape (B, c, H, W) = ({batch}, c, {height}, {width}) to match `logits`, "
                f"got {tuple(guide.shape)}"
            )
        if guide.shape[1] == 0:
            raise ValueError("`guide` must have at least one channel, got none")
        if guide.dtype.is_complex or guide.dtype == torch.bool:
            raise TypeError(f"`guide` must hold real numbers, got {guide.dtype}")
        if guide.device != logits.device:
            raise ValueError(
                f"`guide` must be on the device of `logits`, {logits.device}, got {guide.device}"
            )
        check_finite("logits", logits)
        if guide.dtype.is_floating_point and guide.numel():
            low, high = (float(bound) for bound in torch.aminmax(guide.detach()))
            if not (math.isfinite(low) and math.isfinite(high)):
                check_finite("guide", guide)
            self._warn_of_range(low, high)
        return guide.to(logits.dtype)

    def _warn_of_range(self, low: float, high: float) -> None:
        sigma = float(self.log_appearance_sigma_rgb.detach().exp())
        if not self._use_appearance or sigma < 2:
            return
        if low >= 0 and 0 < high <= 1:
            warnings.warn(
                f"`guide` lies between {low:.3g} and {high:.3g}, but appearance_sigma_rgb={sigma:.3g} is in "
                f"the guide's units, so colours hardly matter; scale the guide to 0..255, or use "
                f"appearance_sigma_rgb={sigma / 255:.3g}",
                stacklevel=6,
            )

    def _kernels(self, guide: Tensor) -> list[PairwiseKernel]:
        kernels: list[PairwiseKernel] = []
        batch, _, height, width = guide.shape
        if self._use_appearance:
            operator = self._appearance_filter(guide)
            weight = self.appearance_weight.to(guide)
            kernels.append(pairwise_kernel(operator, weight, self.normalization))
        if self._use_smoothness:
            kernels.append(
                SmoothnessKernel(
                    (batch, height, width),
                    self.smoothness_sigma.to(guide),
                    self.smoothness_weight.to(guide),
                    self.normalization,
                    backend=self.backend,
                )
            )
        return kernels

    def _appearance_filter(self, guide: Tensor) -> FilterOperator:
        batch, _, height, width = guide.shape
        features = bilateral_features(
            guide, self.appearance_sigma_xy.to(guide), self.appearance_sigma_rgb.to(guide)
        )
        try:
            try:
                return build_filter(
                    features,
                    method=self.method,
                    batch=batch_index(batch, height * width, guide.device),
                    order=self.order,
                    halo=self.halo,
                    backend=self.backend,
                )
            except ValueError:
                infinite = torch.nonzero(~torch.isfinite(features.detach()))
                if len(infinite):
                    raise CoordinateRangeError("", *infinite[0].tolist()) from None
                raise
        except CoordinateRangeError as error:
            of_position = error.axis < POSITION_AXES
            name = "appearance_sigma_xy" if of_position else "appearance_sigma_rgb"
            raise CoordinateRangeError(
                f"`{name}`={float(getattr(self, name).detach()):.4g} is too small: pixel {error.point} would "
                f"lie {abs(features[error.point, error.axis].item()):.6g} standard deviations from the "
                f"origin, more than the lattice's coordinates can hold; use a larger sigma",
                error.point,
                error.axis,
            ) from error

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return (
            f"{self.num_labels}, iterations={self.iterations}, method={self.method}, "
            f"normalization={self.normalization}, order={self.order}, halo={self.halo}, "
            f"exclude_self={self.exclude_self}"
        )


def _parameter(name: str, value: float, learn: bool) -> nn.Parameter:
    start = torch.tensor(check_number(name, value), dtype=torch.float32)
    if not bool(torch.isfinite(start)):
        raise ValueError(f"`{name}` must lie within ±{_FLOAT32.max:.3g}, as float32 does, got {value}")
    return nn.Parameter(start, requires_grad=learn)


def _log_parameter(name: str, value: float, learn: bool) -> nn.Parameter:
    start = torch.tensor(math.log(check_positive(name, value)), dtype=torch.float32)
    if not _FLOAT32.tiny < float(start.exp()) < _FLOAT32.max:
        raise ValueError(
            f"`{name}` must lie between {_FLOAT32.tiny:.3g} and {_FLOAT32.max:.3g}, as float32 does, "
            f"got {value}"
        )
    return nn.Parameter(start, requires_grad=learn)
