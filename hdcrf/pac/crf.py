"""PAC-CRF: mean field in a CRF of windows around each pixel, by pixel-adaptive convolution.

The potential of a pixel i and a neighbour j in the window Ω^k(i), whose taps lie `dilations[k]` pixels apart,
is (equation 6)

    ψ_ij(a, b) = K^k(f_i, f_j) W^k_{a,b}[p_j - p_i],    K^k(f_i, f_j) = exp(-½ |f_i - f_j|²), f = I / σ^k,

and mean field repeats for all pixels at once (equation 7)

    Q_i(a) ← softmax_a(-ψ_i(a) - Σ_k Σ_b Σ_{j ∈ Ω^k(i)} K^k(f_i, f_j) W^k_{a,b}[p_j - p_i] Q_j(b)).

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, CVPR 2019, section 5 and appendix B. In
W_{a,b} the pixel's label comes first, where the paper writes the neighbour's first. W is any function, so a
pair may get different potentials from either side, as in the paper: there is an energy only where
W_{a,b}[δ] = W_{b,a}[-δ]. In the paper the window holds the pixel itself; here it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hdcrf.compatibility import Compatibility
from hdcrf.layer_inputs import (
    Bandwidth,
    bandwidth_in_range,
    check_channels,
    check_filters,
    check_grid,
    check_parameters,
    check_progress,
    checked_learn,
    log_parameter,
    number_parameter,
    warn_of_range,
    working_precision,
)
from hdcrf.mean_field import MeanFieldResult, out_of_range
from hdcrf.pac.adapting_kernel import adapting_kernel
from hdcrf.pac.convolution import pac_conv2d
from hdcrf.relaxed.spatial import gaussian_window
from voxel.checks import check_choice, check_count
from voxel.precision import full_precision

__all__ = ["PacCRF"]

_LEARNABLE = ("filters", "compatibility", "bandwidths")
_OUTPUTS = ("marginals", "logits")
_WIDEST = 255


class PacCRF(nn.Module):
    """Mean field in a CRF that connects every pixel with a few others around it, near and far.

    Args:
        num_labels: K, 1 or more.
        channels: c, of the guide.
        dilations: For each window, how many pixels its taps lie apart.
        kernel_size: Taps of a window along each axis, odd, 3 or more.
        iterations: Iterations of mean field, 0 or more.
        weight: What the filters start at: so many times a Gaussian, whose standard deviation is a quarter of
            the window, and which sums to one over the taps of all windows, for every pair of different
            labels. So a pixel all of whose neighbours look like it pays `weight` for a label that they do
            not carry, whatever the windows are.
        sigma_rgb: What σ starts at, for each window and channel, in the guide's own units: 13 suits a guide
            from 0 to 255; for one from 0 to 1 say 13/255.
        compatibility: "loose", a filter for each pair of labels; or "factorised", W^k_{a,b} = μ(a, b) w^k,
            one for all of them and a matrix for all windows, which is much cheaper.
        blur: b: messages go between averages over b x b pixels, and are brought back bilinearly; for large
            windows. Averages then stand for pixels, also in what a pixel does not send itself. Dilations
            stay in pixels, and must be multiples of b.
        learn: Which parameters are trained: any of "filters", "compatibility" (μ, if factorised) and
            "bandwidths" (σ, kept positive).
        output: What `forward` returns: "marginals" or "logits" (for a loss that applies softmax itself).

    Attributes:
        filters: (N, K, K, s, s) for N windows of s taps: [k, a, b, y, x] is what a pixel labelled a pays for
            the neighbour at tap (y, x), labelled b. If factorised (N, s, s). The centre has no effect.
        compatibility: The `Compatibility` μ if factorised, starting at Potts, else None.
        log_sigma_rgb: (N, c).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> crf = PacCRF(21, output="logits")
        >>> logits = crf(torch.randn(2, 21, 48, 64), torch.rand(2, 3, 48, 64) * 255)

    Cost: N s² K² multiplications a pixel and iteration if loose, N s² K if factorised, and b² times fewer
    with a blur. Memory: N s² numbers a pixel for the adapting kernels, which are computed once.
    """

    sigma_rgb = Bandwidth("σ (N, c), in the guide's units.")
    compatibility: Compatibility | None
    _neighbours: Tensor  # (s, s), 0 at the centre and 1 elsewhere

    def __init__(
        self,
        num_labels: int,
        *,
        channels: int = 3,
        dilations: Iterable[int] = (16, 64),
        kernel_size: int = 5,
        iterations: int = 5,
        weight: float = 4.0,
        sigma_rgb: float = 13.0,
        compatibility: str = "loose",
        blur: int = 1,
        learn: Iterable[str] = ("filters", "compatibility", "bandwidths"),
        output: str = "marginals",
    ) -> None:
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        self.channels = check_count("channels", channels, 1)
        self.kernel_size = check_count("kernel_size", kernel_size, 3, _WIDEST)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, so that it has a centre, got {kernel_size}")
        self.blur = check_count("blur", blur, 1)
        self.dilations = _checked_dilations(dilations, self.blur)
        self.iterations = check_count("iterations", iterations, 0)
        self.output = check_choice("output", output, _OUTPUTS)
        loose = check_choice("compatibility", compatibility, ("loose", "factorised")) == "loose"
        learned = checked_learn(learn, _LEARNABLE)
        windows, taps = len(self.dilations), self.kernel_size
        start = gaussian_window((taps, taps), (taps / 4, taps / 4))
        start *= float(number_parameter("weight", weight, False)) / windows
        if loose:
            check_filters(windows * taps**2, self.num_labels, "a smaller `kernel_size`")
            potts = 1 - torch.eye(self.num_labels, dtype=start.dtype)
            start = potts[:, :, None, None] * start
        filters = start.float().repeat(windows, *[1] * start.dim())
        self.filters = nn.Parameter(filters, requires_grad="filters" in learned)
        self.log_sigma_rgb = log_parameter(
            "sigma_rgb", sigma_rgb, "bandwidths" in learned, (windows, self.channels)
        )
        self.compatibility = (
            None if loose else Compatibility(self.num_labels, "full", learn="compatibility" in learned)
        )
        neighbours = torch.ones(taps, taps)
        neighbours[taps // 2, taps // 2] = 0
        self.register_buffer("_neighbours", neighbours, persistent=False)

    def forward(self, logits: Tensor, guide: Tensor) -> Tensor:
        """Refine unary logits, guided by values on the same grid.

        Args:
            logits: (B, K, H, W) float32 or float64: log-probabilities up to a constant for each pixel. Half
                precision is computed in float32.
            guide: (B, c, H, W) with `channels` channels, floating or integers.

        Returns:
            (B, K, H, W) marginals, or their logarithms, as `output` says, in the dtype of the logits.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, an entry is not finite, or the numbers leave the
                range of their dtype.
        """
        updated = self._updated(logits, guide, None)
        logarithms = check_choice("output", self.output, _OUTPUTS) == "logits"
        result = torch.log_softmax(updated, 1) if logarithms else torch.softmax(updated, 1)
        return result.to(logits.dtype)

    def infer(
        self, logits: Tensor, guide: Tensor, *, progress: Callable[[int], object] | None = None
    ) -> MeanFieldResult:
        """Refine as `forward` does, and return all that mean field knows.

        Args:
            logits: (B, K, H, W), as in `forward`.
            guide: (B, c, H, W), as in `forward`.
            progress: Called with the number of iterations done, after each.

        Returns:
            Marginals and logits (B, K, H, W), and the number of iterations. There is no energy: see above.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        check_progress(progress)
        updated = self._updated(logits, guide, progress)
        marginals, logarithms = torch.softmax(updated, 1), torch.log_softmax(updated, 1)
        return MeanFieldResult(marginals.to(logits.dtype), logarithms.to(logits.dtype), self.iterations)

    @full_precision
    def _updated(self, logits: Tensor, guide: Tensor, progress: Callable[[int], object] | None) -> Tensor:
        """Return the logits of the marginals, up to a constant for each pixel, after all iterations."""
        logits = working_precision(logits).contiguous()  # one layout in memory for all that is added up
        guide = self._checked(logits, guide)
        windows = self._windows(_averaged(guide, self.blur)) if self.iterations else []
        updated = logits
        for iteration in range(self.iterations):
            updated = logits - self._cost(torch.softmax(updated, 1), windows)
            if progress is not None:
                progress(iteration + 1)
        # NaN stays NaN: to look at the end is enough. Finite numbers may have a sum that is not.
        found = updated.detach()
        if not bool(torch.isfinite(found.sum())) and not bool(torch.isfinite(found).all()):
            raise out_of_range(logits, self.iterations)
        return updated

    def _checked(self, logits: Tensor, guide: Tensor) -> Tensor:
        """Validate inputs and parameters, and return the guide in the logits' dtype."""
        check_grid(logits, guide, self.num_labels, "H, W")
        check_channels(guide, self.channels)
        check_parameters(self)
        warn_of_range(
            "guide", guide, "sigma_rgb", float(bandwidth_in_range(self, "sigma_rgb").detach().min())
        )
        return guide.to(logits.dtype)

    def _windows(self, guide: Tensor) -> list[_Window]:
        """Return the windows over a guide (B, c, h, w) of pixels or blocks."""
        windows = []
        filters = self.filters.to(guide) * self._neighbours.to(guide)
        sigmas = bandwidth_in_range(self, "sigma_rgb", guide)
        for weight, sigma, dilation in zip(filters, sigmas, self.dilations, strict=True):
            steps, half = min(dilation // self.blur, max(guide.shape[2:])), self.kernel_size // 2
            # Taps that lie outside, whichever pixel is at the centre, are left out.
            reach = [min(half, (size - 1) // steps) for size in guide.shape[2:]]
            rows, columns = (slice(half - taps, half + taps + 1) for taps in reach)
            weight = weight[..., rows, columns]
            padding = [steps * taps for taps in reach]
            kernel = adapting_kernel(
                guide / sigma[:, None, None], tuple(weight.shape[-2:]), padding=padding, dilation=steps
            )
            if self.compatibility is None:
                windows.append(_Window(kernel, weight, padding, steps))
            else:
                windows.append(_Window(kernel * weight[:, :, None, None], None, padding, steps))
        return windows

    def _cost(self, marginals: Tensor, windows: Sequence[_Window]) -> Tensor:
        """Return what each label costs each pixel, given the marginals of the others: (B, K, H, W)."""
        coarse = _averaged(marginals, self.blur)
        cost = windows[0].message(coarse)
        for window in windows[1:]:
            cost = cost + window.message(coarse)
        if self.compatibility is not None:
            cost = (self.compatibility.matrix().to(cost) @ cost.flatten(2)).view(cost.shape)
        return _enlarged(cost, self.blur, marginals.shape[2:])

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return (
            f"{self.num_labels}, channels={self.channels}, dilations={self.dilations}, "
            f"kernel_size={self.kernel_size}, iterations={self.iterations}, blur={self.blur}"
        )


@dataclass(frozen=True)
class _Window:
    """What stays the same in all iterations."""

    kernel: Tensor  # (B, kH, kW, h, w), times the filter if factorised
    weight: Tensor | None  # (K, K, kH, kW); None if factorised
    padding: list[int]
    dilation: int

    def message(self, marginals: Tensor) -> Tensor:
        """Return what comes from the taps, (B, K, h, w)."""
        return pac_conv2d(marginals, self.kernel, self.weight, padding=self.padding, dilation=self.dilation)


def _checked_dilations(dilations: Iterable[int], blur: int) -> tuple[int, ...]:
    if not isinstance(dilations, Iterable) or isinstance(dilations, str):
        raise TypeError(
            f"`dilations` must be integers, one for each window, got {type(dilations).__name__}; "
            "for a single window write (16,)"
        )
    checked = tuple(check_count("dilations", dilation, 1) for dilation in dilations)
    if not checked:
        raise ValueError("`dilations` must hold one for each window, 1 or more of them, got none")
    for dilation in checked:
        if dilation % blur:
            raise ValueError(
                f"`dilations` must be multiples of blur={blur}, the pixels of an average, got {dilation}"
            )
    return checked


def _averaged(values: Tensor, blur: int) -> Tensor:
    """Return averages over blocks (B, C, ⌈H/b⌉, ⌈W/b⌉) of values (B, C, H, W); the last may be smaller."""
    return values if blur == 1 else functional.avg_pool2d(values, blur, ceil_mode=True)


def _enlarged(values: Tensor, blur: int, sizes: Sequence[int]) -> Tensor:
    """Return values of blocks (B, C, ⌈H/b⌉, ⌈W/b⌉) interpolated at their pixels (B, C, *sizes)."""
    if blur == 1:
        return values
    height, width = sizes
    fine = [size * blur for size in values.shape[2:]]
    return functional.interpolate(values, fine, mode="bilinear", align_corners=False)[:, :, :height, :width]
