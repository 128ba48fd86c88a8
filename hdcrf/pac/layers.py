"""Pixel-adaptive convolution and pooling as layers.

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, 2019, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hdcrf.layer_inputs import working_precision
from hdcrf.pac.adapting_kernel import AdaptingKernel, check_mask
from hdcrf.pac.convolution import (
    pac_conv2d,
    pac_conv3d,
    pac_conv_transpose2d,
    pac_pool2d,
)
from hdcrf.pac.window import Window, per_axis
from voxel.checks import check_choice, check_count, check_flag, check_floating
from voxel.precision import full_precision

__all__ = ["PacConv2d", "PacConv3d", "PacConvTranspose2d", "PacPool2d"]

_FILTERS = ("full", "shared", "gaussian")


def _built_kernel(kernel: object) -> AdaptingKernel:
    if isinstance(kernel, AdaptingKernel):
        return kernel
    if not isinstance(kernel, str):
        raise TypeError(f"`kernel` must be a name or an AdaptingKernel, got {type(kernel).__name__}")
    return AdaptingKernel(kernel)


def _gaussian_window(kernel_size: Sequence[int]) -> Tensor:
    """Return exp(-½ ‖p / σ‖²) at the taps p from the middle one, with σ a fourth of the window's size."""
    window = torch.ones(())
    for size in kernel_size:
        steps = (torch.arange(size) - size // 2) / (size / 4)
        window = window[..., None] * torch.exp(-0.5 * steps**2)
    return window


def _without_masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values with zeros where a mask leaves them out."""
    if mask is None:
        return values
    return torch.where(check_mask(mask, values, "values", values.shape[2:]), values, 0)


def _checked_guide(values: Tensor, guide: object, sizes: Sequence[int]) -> Tensor:
    """Return a guide in the dtype of the values, if it has these sizes and their batch, else raise."""
    guide = working_precision(guide, "guide").to(values.dtype)
    if guide.dim() != values.dim() or (len(guide), *guide.shape[2:]) != (len(values), *sizes):
        raise ValueError(
            f"`guide` must have shape ({len(values)}, d, {', '.join(map(str, sizes))}) for `values` of shape "
            f"{tuple(values.shape)}, got {tuple(guide.shape)}; scale it to that size"
        )
    return guide


class _PacConvolution(nn.Module):
    """What convolutions share: weights and bias, options, and the adapting kernel; see `PacConv2d`."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    _axes: ClassVar[int] = 2
    _transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        kernel: str | AdaptingKernel = "gaussian",
        filters: str = "full",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        axes = self._axes
        self.in_channels = check_count("in_channels", in_channels, 1)
        self.out_channels = check_count("out_channels", out_channels, 1)
        self.kernel_size = per_axis("kernel_size", kernel_size, axes, 1)
        self.stride = per_axis("stride", stride, axes, 1)
        self.padding = per_axis("padding", padding, axes, 0)
        self.dilation = per_axis("dilation", dilation, axes, 1)
        self.groups = check_count("groups", groups, 1)
        self.filters = check_choice("filters", filters, _FILTERS)
        self.normalize = check_flag("normalize", normalize)
        self.kernel = _built_kernel(kernel)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"`groups` must divide `in_channels` and `out_channels`, {in_channels} and {out_channels}, "
                f"got {groups}"
            )
        if filters != "full" and (in_channels != out_channels or groups != 1):
            raise ValueError(
                f"`filters={filters!r}` filters every channel alike, so `out_channels` must be `in_channels` "
                f"and `groups` 1, got {out_channels}, {in_channels} and {groups}"
            )
        if filters == "gaussian":
            self.register_buffer("window", _gaussian_window(self.kernel_size), persistent=False)
            self.weight = None
        else:
            self.window = None
            channels = (in_channels, out_channels) if self._transposed else (out_channels, in_channels)
            shape = (channels[0], channels[1] // groups) if filters == "full" else ()
            self.weight = nn.Parameter(torch.empty(*shape, *self.kernel_size))
        check_flag("bias", bias)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as `torch.nn.Conv2d` does; shared filters start as averages."""
        if self.filters == "full" and self.weight is not None:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(self.weight[0].numel())
        else:
            bound = 0.0
            if self.weight is not None:
                nn.init.constant_(self.weight, 1 / self.weight.numel())
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _check_values(self, values: Tensor) -> Tensor:
        """Return values in the dtype to compute in, if they fit the layer, else raise."""
        values = working_precision(values, "values")
        if values.dim() != self._axes + 2 or values.shape[1] != self.in_channels:
            raise ValueError(
                f"`values` must have {self._axes + 2} dimensions and {self.in_channels} channels, "
                f"(B, C, *S), got {tuple(values.shape)}"
            )
        return values

    def _kernel(
        self,
        values: Tensor,
        guide: Tensor | None,
        mask: Tensor | None,
        kernel: Tensor | None,
        sizes: Sequence[int],
    ) -> Tensor:
        """Return the adapting kernel of a guide with these sizes, or the one given; with fixed filters."""
        if (guide is None) == (kernel is None):
            raise ValueError("one of `guide` and `kernel` is needed, and not both")
        if guide is not None:
            guide = _checked_guide(values, guide, sizes)
            computed: Tensor = self.kernel(
                guide,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                window=None if self.window is None else self.window.to(values),
                mask=mask,
                normalize=self.normalize,
                places=values.shape[2:] if self._transposed else None,
            )
            return computed
        if mask is not None or self.normalize:
            raise ValueError(
                "a `kernel` computed before is taken as it is: pass `mask` and `normalize` on to "
                "`adapting_kernel`, and make the layer with normalize=False"
            )
        given: Tensor = check_floating("kernel", kernel)
        return given if self.window is None else given * self._over_taps(self.window.to(given))

    def _over_taps(self, factors: Tensor) -> Tensor:
        return factors.view(*self.kernel_size, *[1] * self._axes)

    def _parameters_for(self, values: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the kernel with shared filters in it, the weights that are not shared, and the bias."""
        bias = None if self.bias is None else self.bias.to(values.dtype)
        if self.weight is None:
            return kernel, None, bias
        weight = self.weight.to(values.dtype)
        if self.filters == "shared":
            return kernel * self._over_taps(weight), None, bias
        return kernel, weight, bias

    def extra_repr(self) -> str:
        """Describe the layer in `repr`."""
        options = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        rest = f"dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        return (
            f"{self.in_channels}, {self.out_channels}, {options}, {rest}, filters={self.filters!r}, "
            f"normalize={self.normalize}"
        )


class _PacConv(_PacConvolution):
    """What has no more than the arguments of a convolution."""

    @full_precision
    def forward(
        self,
        values: Tensor,
        guide: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        kernel: Tensor | None = None,
    ) -> Tensor:
        """Convolve values, adapted by a guide.

        Args:
            values: (B, C, *S) float32 or float64. Half precision is computed in float32.
            guide: (B, d, *S), any features, divided by their bandwidths.
            mask: (B, 1, *S) bool, for which pixels there are values; what the others hold, NaN included, is
                not seen. The guide counts everywhere.
            kernel: K, (B, *k, *O), in place of a guide: one that `adapting_kernel` gave before.

        Returns:
            (B, C', *O), in the dtype of the values.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If shapes or devices do not match.
        """
        dtype = values.dtype if isinstance(values, Tensor) else None
        values = self._check_values(values)
        kernel = self._kernel(values, guide, mask, kernel, values.shape[2:])
        kernel, weight, bias = self._parameters_for(values, kernel)
        convolve = pac_conv2d if self._axes == 2 else pac_conv3d
        result = convolve(
            _without_masked(values, mask),
            kernel,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return result.to(dtype)


class PacConv2d(_PacConv):
    """Pixel-adaptive convolution: `torch.nn.Conv2d` with weights that a guide adapts at each place.

    Weights, bias, their names and how they start are those of `torch.nn.Conv2d`; so `load_state_dict` takes
    what one of these has learned ("detail_preserving" has two numbers more), and a guide that is the same
    everywhere makes the two the same.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: Taps along each axis: one number, or one for each; so the others.
        stride: Of the places.
        padding: Zeros on both sides.
        dilation: Between taps.
        groups: Of channels, as in `torch.nn.Conv2d`.
        bias: Whether there is one.
        kernel: The adapting kernel: "gaussian", "laplacian", "detail_preserving", or an `AdaptingKernel`.
        filters: "full", weights (C', C / groups, kH, kW); "shared", one filter (kH, kW) for every channel by
            itself; or "gaussian", that filter fixed, a Gaussian with a standard deviation of a fourth of the
            window.
        normalize: Whether kernels are divided by their sums over what counts. With `filters="gaussian"` that
            gives the bilateral filter.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> layer = PacConv2d(16, 32, 3, padding=1)
        >>> layer(torch.randn(1, 16, 24, 32), guide=torch.randn(1, 8, 24, 32)).shape
        torch.Size([1, 32, 24, 32])

    Reference: Su et al. 2019, equation 3.
    """


class PacConv3d(_PacConv):
    """Pixel-adaptive convolution of volumes and videos: `torch.nn.Conv3d` with weights that a guide adapts.

    Arguments, attributes, errors and `forward` as `PacConv2d`, with three axes: values (B, C, D, H, W) and a
    guide (B, d, D, H, W).
    """

    _axes = 3


class PacConvTranspose2d(_PacConvolution):
    """Pixel-adaptive transposed convolution: `torch.nn.ConvTranspose2d` with weights that a guide adapts.

    The guide has the size of the output. An input pixel lies at the output pixel that the middle tap of its
    window meets, and is compared with all pixels that it is spread to.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: Taps along each axis.
        stride: By how much it enlarges.
        padding: As in `torch.nn.ConvTranspose2d`; so the others.
        output_padding: Rows and columns added at the far sides.
        groups: Of channels.
        bias: Whether there is one.
        dilation: Between taps.
        kernel: As in `PacConv2d`.
        filters: As in `PacConv2d`; "full" weights are (C, C' / groups, kH, kW).
        normalize: Whether kernels are divided by their sums over all that reaches an output pixel.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> layer = PacConvTranspose2d(16, 8, 5, stride=2, padding=2, output_padding=1)
        >>> layer(torch.randn(1, 16, 24, 32), guide=torch.randn(1, 3, 48, 64)).shape
        torch.Size([1, 8, 48, 64])

    Reference: Su et al. 2019, section 3, "Implementation and variants".
    """

    _transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        *,
        kernel: str | AdaptingKernel = "gaussian",
        filters: str = "full",
        normalize: bool = False,
    ) -> None:
        self.output_padding = per_axis("output_padding", output_padding, self._axes, 0)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            kernel=kernel,
            filters=filters,
            normalize=normalize,
        )

    @full_precision
    def forward(
        self,
        values: Tensor,
        guide: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        kernel: Tensor | None = None,
    ) -> Tensor:
        """Enlarge values, adapted by a guide.

        Args:
            values: (B, C, H, W) float32 or float64. Half precision is computed in float32.
            guide: (B, d, H', W'), of the size of the output.
            mask: (B, 1, H, W) bool, which values count.
            kernel: (B, kH, kW, H, W), in place of a guide.

        Returns:
            (B, C', H', W'), in the dtype of the values.

        Raises:
            TypeError, ValueError: As `PacConv2d.forward`.
        """
        dtype = values.dtype if isinstance(values, Tensor) else None
        values = self._check_values(values)
        window = Window.of_transposed(
            values.shape[2:], self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation
        )
        kernel = self._kernel(values, guide, mask, kernel, window.sizes)
        kernel, weight, bias = self._parameters_for(values, kernel)
        result = pac_conv_transpose2d(
            _without_masked(values, mask),
            kernel,
            weight,
            bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
        return result.to(dtype)

    def extra_repr(self) -> str:
        """Describe the layer in `repr`."""
        return f"{super().extra_repr()}, output_padding={self.output_padding}"


class PacPool2d(nn.Module):
    """Pixel-adaptive pooling: averages that a guide adapts, each channel by itself.

    A guide that is the same everywhere makes it `torch.nn.AvgPool2d`, which counts its padding with
    `normalize=False` and does not with `normalize=True`. "detail_preserving" kernels favour what differs from
    the centre, as detail-preserving pooling does.

    Args:
        kernel_size: Taps along each axis.
        stride: Of the places; None for the kernel's size.
        padding: On both sides.
        dilation: Between taps.
        kernel: As in `PacConv2d`.
        normalize: Whether the kernel's values are divided by their sum over what counts, rather than by their
            number.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Reference: Su et al. 2019, section 3, "Generalizations"; Saeedan et al. 2018.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        *,
        kernel: str | AdaptingKernel = "gaussian",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = per_axis("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else per_axis("stride", stride, 2, 1)
        self.padding = per_axis("padding", padding, 2, 0)
        self.dilation = per_axis("dilation", dilation, 2, 1)
        self.normalize = check_flag("normalize", normalize)
        self.kernel = _built_kernel(kernel)

    @full_precision
    def forward(self, values: Tensor, guide: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool values, adapted by a guide.

        Args:
            values: (B, C, H, W) float32 or float64. Half precision is computed in float32.
            guide: (B, d, H, W), any features, divided by their bandwidths; the values themselves, for one.
            mask: (B, 1, H, W) bool, for which pixels there are values; what the others hold, NaN included, is
                not seen. The guide counts everywhere.

        Returns:
            (B, C, H', W'), in the dtype of the values.

        Raises:
            TypeError, ValueError: As `PacConv2d.forward`.
        """
        dtype = values.dtype if isinstance(values, Tensor) else None
        values = working_precision(values, "values")
        guide = _checked_guide(values, guide, values.shape[2:])
        values = _without_masked(values, mask)
        kernel = self.kernel(
            guide,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            mask=mask,
            normalize=self.normalize,
        )
        if not self.normalize:
            kernel = kernel / math.prod(self.kernel_size)
        return pac_pool2d(values, kernel, self.stride, self.padding, self.dilation).to(dtype)

    def extra_repr(self) -> str:
        """Describe the layer in `repr`."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, normalize={self.normalize}"
        )
